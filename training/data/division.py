"""Which examples are for training and which for testing, where people's own data say so in part or not at all."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from training.errors import UserError, listed

Rows = NDArray[np.intp]


def divide(where: str, sizes: Mapping[str, int], y: NDArray, classes: Sequence[str]) -> tuple[Rows, Rows, list[str]]:
    """The rows for training, those for testing, and what a user should know of it.

    y (N,) are the class indices of the parts "train", "val" and "test", one part after another; the last two may be
    missing. The validation examples become the last training examples, so that they can be held out, or the test set
    where there is none. Without either, a fifth of each class is drawn for testing, always the same. Training examples
    that stand class by class are shuffled, so that the first and the last K of them hold every class.

    Raises UserError, beginning with `where`, if nothing can be tested.
    """
    ends = np.cumsum(list(sizes.values()))
    rows = dict(zip(sizes, np.split(np.arange(len(y)), ends[:-1]), strict=True))
    train, notes = rows["train"], []
    if len(rows) == 1:
        train, test = _drawn(where, y)
        notes.append("a fifth of each class, drawn with seed 0, is for testing")
    else:
        if _stands_by_class(y[train]):
            train = train[_shuffled(len(train))]
            notes.append("training examples that stand class by class are shuffled with seed 0")
        test = rows["test" if "test" in rows else "val"]
        if len(rows) == 3:
            train, count = np.concatenate([train, rows["val"]]), sizes["val"]
            notes.append(f"the validation examples are the last for training, --validation {count} holds them out")
        elif "val" in rows:
            notes.append("the validation examples take the test set's place")
    return train, test, notes + _unseen(where, y[train], y[test], classes)


def _drawn(where: str, y: NDArray) -> tuple[Rows, Rows]:
    """Of each class a fifth, but at least one of two, for testing; both in an order drawn with seed 0."""
    order = _shuffled(len(y))
    is_test = np.zeros(len(y), dtype=bool)
    for members in np.split(order[y[order].argsort(kind="stable")], np.cumsum(np.bincount(y))[:-1]):
        is_test[members[: max(len(members) // 5, int(len(members) > 1))]] = True
    if not is_test.any():
        raise UserError(
            f"{where} has no two examples of any class; a class needs one to train on and one to test on, and "
            "quantities are not learned"
        )
    return order[~is_test[order]], order[is_test[order]]


def _stands_by_class(y: NDArray) -> bool:
    """Whether neighbours are of different classes less than half as often as in a random order."""
    expected = len(y) * (1 - ((np.bincount(y) / len(y)) ** 2).sum())
    return bool((y[1:] != y[:-1]).sum() < expected / 2)


def _shuffled(count: int) -> Rows:
    return torch.randperm(count, generator=torch.Generator().manual_seed(0)).numpy()


def _unseen(where: str, train: NDArray, test: NDArray, classes: Sequence[str]) -> list[str]:
    """What to say of classes that only one of the two sets has."""
    trained, tested = (np.bincount(part, minlength=len(classes)) for part in (train, test))
    unseen, untested = (trained == 0) & (tested > 0), (trained > 0) & (tested == 0)
    if tested[unseen].sum() == len(test):
        raise UserError(
            f"{where} has no training example of the classes that are tested ({_names(classes, unseen)}); give both "
            "sets the same labels"
        )
    notes = []
    if unseen.any():
        wrong = f"so {tested[unseen].sum():,} of the test examples cannot be classified correctly"
        notes.append(f"no training example is of class {_names(classes, unseen)}, {wrong}")
    if untested.any():
        notes.append(f"no test example is of class {_names(classes, untested)}")
    return notes


def _names(classes: Sequence[str], chosen: NDArray) -> str:
    return listed([name for name, is_chosen in zip(classes, chosen, strict=True) if is_chosen])
