"""Pictures of the user's own: one file, or a folder for every class."""

from pathlib import Path

import numpy as np
import torch

from training.data.dataset import Dataset, Split
from training.errors import UserError
from training.pictures import SIDE, Reading, as_bytes, on_white, open_picture, read_digit, resized

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
PREPARATIONS = {"mnist": "digit", "sample": "digit", "fashion-mnist": "picture", "images": "picture"}


def preparation_of(dataset_name: str) -> str:
    """How `read_picture` must prepare a picture for a network that was trained on this data set.

    Raises ValueError for a data set that is not one of pictures.
    """
    if dataset_name not in PREPARATIONS:
        raise UserError(
            f"a network trained on {dataset_name!r} reads no pictures; only those trained on "
            f"{', '.join(PREPARATIONS)} do, for others evaluate a data set"
        )
    return PREPARATIONS[dataset_name]


def read_picture(path: Path, preparation: str) -> Reading:
    """The picture at `path`, of any size and color, as a network reads it: 28x28 bytes, row by row.

    "digit" finds the digit and prepares it as MNIST's authors did (training/pictures/digit.py). "picture" lays
    transparency on white, turns it grey and resizes it. A camera's rotation is obeyed.

    Raises UserError if the file is no picture, or for a digit if there is nothing on it; ValueError for another
    `preparation`.
    """
    if preparation not in ("digit", "picture"):
        raise ValueError(f"preparation is {preparation!r}; use 'digit' or 'picture'")
    if preparation == "digit":
        return read_digit(path)
    grey = np.asarray(on_white(open_picture(path)).convert("L"), dtype=np.float64)
    return Reading(as_bytes(resized(grey, SIDE, SIDE))[None])


def load_images(data_dir: Path) -> Dataset:
    """The pictures of `data_dir`, which holds one folder per class; class indices follow the folders' sorted names.

    In each class the first picture in name order and every fifth after it are for testing. The training pictures are
    shuffled, always in the same way, so that the last K of them hold every class. Hidden files, and files that are not
    named like a picture, are left out.
    """
    if not data_dir.is_dir():
        raise UserError(f"{data_dir} is no directory; --dataset images needs one that holds a folder per class")
    folders = sorted(path for path in data_dir.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(folders) < 2:
        raise UserError(
            f"{data_dir} holds {len(folders)} class folder(s), at least 2 are needed; put each class's pictures "
            "into a folder of its own there"
        )
    train: list[tuple[Path, int]] = []
    test: list[tuple[Path, int]] = []
    for label, folder in enumerate(folders):
        files = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
        if len(files) < 2:
            raise UserError(
                f"{folder} holds {len(files)} picture(s), at least 2 are needed; "
                f"add some, named *{', *'.join(SUFFIXES)}"
            )
        for number, file in enumerate(files):
            (train if number % 5 else test).append((file, label))
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).tolist()
    return Dataset(
        name="images",
        train=_read_all([train[i] for i in order]),
        test=_read_all(test),
        shape=(SIDE, SIDE),
        classes=tuple(folder.name for folder in folders),
        source=f"pictures from {data_dir}/: {len(train):,} training and {len(test):,} test pictures "
        f"of {len(folders)} classes",
    )


def _read_all(examples: list[tuple[Path, int]]) -> Split:
    pictures = [read_picture(path, "picture").views[0] for path, _ in examples]
    return Split(torch.stack(pictures), torch.tensor([label for _, label in examples]))
