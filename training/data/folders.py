"""Pictures of the user's own in folders: one for every class, and perhaps folders around them for train and test."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from training.data.dataset import Dataset, Split
from training.data.division import divide
from training.data.images import SUFFIXES, read_picture
from training.data.labels import Labels, class_indices
from training.data.roles import PARTS, part_of
from training.errors import UserError
from training.pictures import SIDE

SYSTEM_FILES = ("thumbs.db", "desktop.ini")  # of Windows; other systems' begin with a dot


def load_images(data_dir: Path) -> Dataset:
    """The pictures of `data_dir`, which holds one folder per class, or folders such as train and test that do.

    Class indices follow the folders' sorted names; `divide` says what is for training and what for testing. Pictures
    may lie deeper in a class's folder. Hidden files, files that are not named like a picture and empty folders are left
    out, and the data set's source says so. Raises UserError if there are no two classes, for a class without pictures
    among its files, and for pictures that cannot be read.
    """
    if not data_dir.is_dir():
        raise UserError(
            f"{data_dir} is no directory; --dataset images needs --data-dir to be one with a folder per class"
        )
    parts = _parts(data_dir)
    files, folders, left_out, empty = [], [], [], []
    sizes = dict.fromkeys(parts, 0)
    for part, root in parts.items():
        left_out += [path for path in root.iterdir() if path.is_file() and _is_visible(path)]
        for folder in _folders(root):
            found = sorted(path for path in folder.rglob("*") if path.is_file() and _is_visible(path, folder))
            pictures = [path for path in found if path.suffix.lower() in SUFFIXES]
            if found and not pictures:
                raise UserError(
                    f"{folder} holds files ({_suffixes(found)}) and no picture; save pictures as "
                    f"*{', *'.join(SUFFIXES)}"
                )
            left_out += [path for path in found if path not in pictures]
            empty += [] if found else [str(folder.relative_to(data_dir))]
            files += pictures
            folders += [folder.name] * len(pictures)
            sizes[part] += len(pictures)
        if not sizes[part]:
            raise UserError(f"{root} has no pictures in class folders; put each class's into a folder of its own there")
    indices, classes, _ = class_indices(str(data_dir), {"folders": Labels(np.array(folders))})
    train, test, notes = divide(str(data_dir), sizes, indices, classes)
    x, y = torch.stack(_read(files)), torch.from_numpy(indices)
    if left_out:
        notes.append(f"{len(left_out):,} files are left out ({_suffixes(left_out)})")
    if empty:
        notes.append(f"empty folders are left out ({', '.join(empty)})")
    what = f"{len(train):,} training and {len(test):,} test pictures of {len(classes)} classes"
    return Dataset(
        name="images",
        train=Split(x[train], y[train]),
        test=Split(x[test], y[test]),
        shape=(SIDE, SIDE),
        classes=classes,
        source="; ".join([f"pictures from {data_dir}/: {what}, each made {SIDE}×{SIDE} grey", *notes]),
    )


def _parts(data_dir: Path) -> dict[str, Path]:
    """The folders that hold the class folders: data_dir, or those in it for training, validation and testing."""
    folders = _folders(data_dir)
    parts = {part_of(folder.name): folder for folder in folders}
    others = [folder.name for folder in folders if not part_of(folder.name)]
    if "train" in parts and len(parts) > 1 and (not others or _folders(parts["train"])):
        if others or len(parts) < len(folders):
            raise UserError(
                f"{data_dir} holds {', '.join(folder.name for folder in folders)}; leave one folder each for train, "
                "val and test there, with the class folders in them"
            )
        return {part: parts[part] for part in PARTS if part in parts}
    if len(folders) < 2:
        inside = [folder.name for folder in folders if _folders(folder)]
        give = f"give --data-dir {data_dir / inside[0]}, or " if inside else ""
        raise UserError(
            f"{data_dir} needs at least 2 class folders and holds {len(folders)}; {give}put each class's pictures "
            "into a folder of its own there"
        )
    return {"train": data_dir}


def _folders(directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if path.is_dir() and _is_visible(path))


def _is_visible(path: Path, below: Path | None = None) -> bool:
    names = path.relative_to(below).parts if below else (path.name,)
    return not any(name.startswith((".", "__MACOSX")) or name.lower() in SYSTEM_FILES for name in names)


def _suffixes(files: Iterable[Path]) -> str:
    counts = Counter(path.suffix.lower() or "no suffix" for path in files)
    return ", ".join(f"{count:,} {suffix}" for suffix, count in sorted(counts.items()))


def _read(files: list[Path]) -> list[torch.Tensor]:
    """All pictures, or one sentence about those that cannot be read."""
    pictures, faults = [], []
    for path in files:
        try:
            pictures.append(read_picture(path, "picture").views[0])
        except UserError as error:
            faults.append(str(error))
    if faults:
        more = f"{len(faults):,} pictures cannot be read, the first of them: " if len(faults) > 1 else ""
        raise UserError(f"{more}{faults[0]}")
    return pictures
