"""Labels as people save them: whole numbers from anywhere, one-hot rows, names, True and False."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.errors import UserError, listed

MAX_CLASSES = 10_000
EXACT = 2**53  # up to here a float64 holds every whole number
POSSIBLE = "labels are whole numbers, names, True and False, or one-hot rows"


@dataclass(frozen=True)
class Labels:
    """Labels (N,): int64, or text. One-hot rows say by their `columns` how many classes there are."""

    values: NDArray
    columns: int = 0


def read_labels(where: str, y: NDArray, rows: int) -> Labels:
    """The labels of the array y, which `where` names, for so many examples.

    (N,) or (N, 1) are labels, (N, K) one-hot rows; floats have to be whole numbers. Raises UserError for anything else.
    """
    if y.dtype.kind not in "biufSU":
        raise UserError(f"{where} is {y.dtype}; {POSSIBLE}")
    is_one_each = y.size == rows and max(y.shape, default=0) == rows
    if not is_one_each and (y.ndim == 0 or len(y) != rows):
        raise UserError(
            f"{where} has shape {y.shape}, and there are {rows:,} rows of examples; save one label a row, and examples "
            "along the first axis"
        )
    if not is_one_each:
        y = y.reshape(rows, -1)
        return Labels(_one_hot(where, y), y.shape[1])
    y = y.ravel()
    return Labels(_names(where, y) if y.dtype.kind in "bSU" else _whole_numbers(where, y))


def _one_hot(where: str, y: NDArray) -> NDArray:
    if y.dtype.kind in "SU":
        raise UserError(f"{where} has {y.shape[1]} names a row; save one label a row")
    ones = y == 1
    wrong = np.flatnonzero((ones.sum(axis=1) != 1) | (y != ones).any(axis=1))
    if len(wrong):
        row = listed([f"{value:g}" for value in y[wrong[0]].tolist()])
        raise UserError(
            f"{where} has {y.shape[1]} columns, and row {wrong[0]} is ({row}), which is not one-hot, a single 1 among "
            "zeros; save one label a row"
        )
    return ones.argmax(axis=1)


def _names(where: str, y: NDArray) -> NDArray:
    try:
        names = np.char.decode(y, "utf-8") if y.dtype.kind == "S" else y.astype(str)
    except UnicodeDecodeError as error:
        raise UserError(f"{where} has names that are not UTF-8 ({error.object!r}); save them as text") from None
    empty = np.flatnonzero(np.char.strip(names) == "")
    if len(empty):
        raise UserError(f"{where} has no label in row {empty[0]}; name its class, or leave the row out")
    return names


def _whole_numbers(where: str, y: NDArray) -> NDArray:
    wrong = np.flatnonzero(~np.isfinite(y) | (y != np.rint(y)) | (y > EXACT) | (y < -EXACT))
    if len(wrong):
        raise UserError(f"{where} has {y[wrong[0]]} in row {wrong[0]}, which is no class; {POSSIBLE}")
    values = y.astype(np.int64)
    if values.min() == -1 and values.max() > 1:
        raise UserError(
            f"{where} has {(values == -1).sum():,} labels of -1 beside labels up to {values.max():,}; leave these rows "
            "out if -1 means no label, or number the classes from 0"
        )
    return values


def class_indices(where: str, labels: Mapping[str, Labels]) -> tuple[NDArray, tuple[str, ...], str]:
    """Class indices y (N,) for the labels of several arrays, by the arrays' names; the classes; what was made of them.

    Every label that occurs is a class: numbers in their order, names in the alphabet's. What was made of them is empty
    where they are the indices already. Raises UserError, beginning with `where`, for labels of different kinds, a
    single class, and too many.
    """
    kinds = {name: "names" if label.values.dtype.kind == "U" else "numbers" for name, label in labels.items()}
    if len(set(kinds.values())) > 1:
        uses = " and ".join(f"{kind} in {name}" for name, kind in kinds.items())
        raise UserError(f"{where} has {uses} as labels; save all alike")
    columns = max(label.columns for label in labels.values())
    every_column = [np.arange(columns)] if columns else []  # is a class, and one that no example has too
    values = np.concatenate([*every_column, *(label.values for label in labels.values())])
    known, y = np.unique(values, return_inverse=True)
    if all(str(label).isdecimal() for label in known):
        order = np.array(sorted(range(len(known)), key=lambda k: int(known[k])))
        known, y = known[order], order.argsort()[y]
    if not 2 <= len(known) <= MAX_CLASSES:
        raise UserError(
            f"{where} has {len(known):,} different labels ({_spelled(known)}); 2 to {MAX_CLASSES:,} "
            "classes are possible"
        )
    what = f"one-hot rows of {columns}" if columns else f"labels {_spelled(known)}"
    taken = f"{what} are taken as {len(known):,} classes"
    is_index = not columns and np.array_equal(known, np.arange(len(known)))
    return y[columns:], tuple(map(str, known)), "" if is_index else taken


def _spelled(labels: NDArray) -> str:
    """Such as 1 to 10 for whole numbers in a row."""
    if labels.dtype.kind == "i" and len(labels) > 2 and labels[-1] - labels[0] == len(labels) - 1:
        return f"{labels[0]} to {labels[-1]}"
    return listed(labels.tolist())
