"""What training sees of a data set: two tensors a split, held whole on the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Split:
    """Examples x (N, features), uint8 for pictures and floating point otherwise, with class indices y (N,) int64."""

    x: Tensor
    y: Tensor

    carries = False  # a batch does not go on with the sequences of the one before

    def __len__(self) -> int:
        return len(self.y)

    def to(self, device: torch.device | str) -> Split:
        """The same examples on `device`."""
        return Split(self.x.to(device), self.y.to(device))

    def batch(self, indices: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The rows at `indices` (B,): x (B, features) as `dtype`, bytes scaled from 0..255 to [0, 1], and y (B,).

        Bytes are gathered first and scaled afterwards: that moves a quarter of the memory of a float32 gather.
        """
        return scaled(self.x.index_select(0, indices), dtype), self.y.index_select(0, indices)


def scaled(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x as `dtype`, bytes from 0..255 to [0, 1]."""
    return x.to(dtype).mul_(1 / 255) if x.dtype == torch.uint8 else x.to(dtype)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training set and the examples that judge it.

    `name` is resolved, never "auto". With `validation=K` at loading, `test` is the last K training examples, held out
    of `train`. `shape` is that of one example, (28, 28) for pictures, and its product is the number of features.
    `classes` names the classes in index order. `source` says in one line which data these are, and where from.
    """

    name: str
    train: Split
    test: Split
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    source: str

    def to(self, device: torch.device | str) -> Dataset:
        """The same data set on `device`."""
        return Dataset(self.name, self.train.to(device), self.test.to(device), self.shape, self.classes, self.source)
