"""Arrays of the user's own, in one .npz file."""

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from training.data.dataset import Dataset, Split
from training.data.division import divide
from training.data.labels import class_indices, read_labels
from training.data.pixels import as_examples, check_examples
from training.data.roles import PARTS, Role, names_by_role
from training.errors import UserError

SAVE = "save it with numpy.savez(path, x=x, y=y)"
WHAT = {"x": "examples", "y": "labels"}
PURPOSE = {"train": "for training", "val": "for validation", "test": "for testing"}

Named = tuple[str, NDArray]  # an array with the name that it has in the file


def load_npz(path: Path) -> Dataset:
    """Examples x (N, …) and labels y (N,) from the .npz file at `path`, and those for validation and testing.

    The names of the arrays say what they are (`role_of`): x and y, x_train and y_test, train_images, data and target.
    What labels, pixels and parts may be, and what is made of them, say `read_labels`, `as_examples` and `divide`; the
    data set's source tells it. Raises UserError at whatever does not fit.
    """
    found, notes = _read(path)
    parts = [part for part in PARTS if (part, "x") in found]
    examples, labels = {}, {}
    for part in parts:
        (x_name, x), (y_name, y) = found[part, "x"], found[part, "y"]
        check_examples(f"{path}: {x_name}", x)
        examples[x_name], labels[y_name] = x, read_labels(f"{path}: {y_name}", y, len(x))
    indices, classes, taken = class_indices(str(path), labels)
    inputs, shape, made = as_examples(str(path), examples)
    sizes = dict(zip(parts, map(len, examples.values()), strict=True))
    train, test, divided = divide(str(path), sizes, indices, classes)
    targets = torch.from_numpy(indices)
    what = f"{len(train):,} training and {len(test):,} test examples of {len(classes)} classes"
    return Dataset(
        name="npz",
        train=Split(inputs[train], targets[train]),
        test=Split(inputs[test], targets[test]),
        shape=shape,
        classes=classes,
        source="; ".join([f"arrays from {path}: {what}", *notes, *filter(None, [taken]), *made, *divided]),
    )


def _read(path: Path) -> tuple[dict[Role, Named], list[str]]:
    """The arrays that have a role, each with its name, and what was made of arrays without names."""
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, NpzFile):
                raise UserError(f"{path} holds a single array; save x and y together with numpy.savez(path, x=x, y=y)")
            return _found(path, archive)
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{path} is no file; --dataset npz needs --data-dir to be the path of a .npz file") from None
    except UserError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        reason = error if zipfile.is_zipfile(path) or isinstance(error, OSError) else "it is not a zip file"
        raise UserError(
            f"{path} cannot be read as a .npz file of plain arrays ({reason}); save it with numpy.savez(path, x=x, y=y)"
        ) from error


def _found(path: Path, archive: NpzFile) -> tuple[dict[Role, Named], list[str]]:
    if archive.files == ["arr_0", "arr_1"]:  # numpy.savez(path, x, y)
        x, y = (_array(path, archive, name) for name in archive.files)
        if x.ndim > 1:
            return {("train", "x"): ("arr_0", x), ("train", "y"): ("arr_1", y)}, [
                "arr_0 and arr_1 are taken as x and y"
            ]
    by_role = names_by_role(archive.files)
    for part in dict.fromkeys(["train", *(part for part, _ in by_role)]):
        for kind, what in WHAT.items():
            if (part, kind) not in by_role:
                names = f"{kind} or {kind}_train" if part == "train" else f"{kind}_{part}"
                has = f"it holds {', '.join(archive.files[:12])}" if archive.files else "it is empty"
                raise UserError(f"{path} has no {what} {PURPOSE[part]} ({names}); {has}; {SAVE}")
    return {
        role: _the_one(path, role, {name: _array(path, archive, name) for name in names})
        for role, names in by_role.items()
    }, []


def _array(path: Path, archive: NpzFile, name: str) -> NDArray:
    try:
        return archive[name]
    except ValueError as error:
        if "pickle" not in str(error):
            raise
        raise UserError(
            f"{path}: {name} holds Python objects, which are not loaded because they could run any code; save it as an "
            f"array of numbers, all rows of one shape, or of names with {name}.astype(str)"
        ) from None


def _the_one(path: Path, role: Role, arrays: dict[str, NDArray]) -> Named:
    """The array of a role, of several that hold the same numbers that of most axes, as scikit-learn saves pictures."""
    (name, x), *others = sorted(arrays.items(), key=lambda named: -named[1].ndim)
    for other, values in others:
        if not np.array_equal(x.ravel(), values.ravel()):
            raise UserError(
                f"{path}: both {name} and {other} could be the {WHAT[role[1]]} {PURPOSE[role[0]]}; save one of them"
            )
    return name, x
