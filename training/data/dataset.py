"""What training sees of a data set: tensors held whole on the device, and an order in which an epoch reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Protocol

import torch
from torch import Tensor

from training.data.order import epoch_order


class Examples(Protocol):
    """The training set or the test set: examples by their index, and the order in which an epoch takes them."""

    @property
    def targets(self) -> int:
        """How many targets an example has: 1 for a class, T for a segment of text."""
        ...

    @property
    def carries(self) -> bool:
        """Whether each mini-batch continues the sequences of the one before, so that a model's state may go on."""
        ...

    @property
    def unit(self) -> str:
        """What --examples and --validation count, in the plural."""
        ...

    @property
    def device(self) -> torch.device: ...

    def __len__(self) -> int:
        """How many examples there are."""
        ...

    def to(self, device: torch.device | str) -> Examples:
        """The same examples on `device`."""
        ...

    def part(self, start: int, stop: int) -> Examples:
        """The examples from `start` up to but without `stop`."""
        ...

    def first(self, count: int) -> Examples:
        """The first `count` examples; all where there are fewer."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """All that it holds, under a plural noun each: the examples and labels, or the ids of a text."""
        ...

    def stored(self, indices: Tensor) -> Tensor:
        """x of the examples at `indices` (B,) as it is stored: the bytes of pictures, ids, or floating point."""
        ...

    def batch(self, indices: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """x (B, …) of the examples at `indices` (B,) as `scaled` gives it, and their targets, one example's after
        another's: y (B·targets,)."""
        ...

    def reading(self, batch_size: int) -> str:
        """How an epoch reads them, in one line, where something is to be said about it."""
        ...

    def blocks(self, size: int) -> Iterator[Tensor]:
        """The indices of all examples for an evaluation, about `size` at a time.

        With `carries` example i of a block goes on with example i of the block before, and the last may be fewer.
        """
        ...

    def steps(self, batch_size: int) -> int:
        """Steps of an epoch."""
        ...

    def order(self, seed: int, epoch: int, batch_size: int) -> Tensor:
        """The indices of an epoch, int64 on the CPU: the k-th mini-batch takes order[k·batch_size:(k+1)·batch_size]."""
        ...


@dataclass(frozen=True, eq=False)
class Split:
    """Examples x (N, features) with class indices y (N,) int64, shuffled in every epoch.

    x is uint8 for pictures; else it is floating point.
    """

    x: Tensor
    y: Tensor
    targets = 1
    carries = False  # a batch does not go on with the sequences of the one before
    unit = "examples"

    def __len__(self) -> int:
        return len(self.y)

    @property
    def device(self) -> torch.device:
        return self.x.device

    def to(self, device: torch.device | str) -> Split:
        return Split(self.x.to(device), self.y.to(device))

    def part(self, start: int, stop: int) -> Split:
        return Split(self.x[start:stop], self.y[start:stop])

    def first(self, count: int) -> Split:
        return self.part(0, count)

    def tensors(self) -> dict[str, Tensor]:
        return {"examples": self.x, "labels": self.y}

    def stored(self, indices: Tensor) -> Tensor:
        return self.x.index_select(0, indices)

    def batch(self, indices: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Bytes are gathered first and scaled afterwards: that moves a quarter of the memory of a float32 gather."""
        return scaled(self.stored(indices), dtype), self.y.index_select(0, indices)

    def reading(self, batch_size: int) -> str:
        return ""

    def blocks(self, size: int) -> Iterator[Tensor]:
        yield from torch.arange(len(self), device=self.device).split(size)

    def steps(self, batch_size: int) -> int:
        """The last mini-batch is smaller where `batch_size` does not divide the examples."""
        return -(-len(self) // batch_size)

    def order(self, seed: int, epoch: int, batch_size: int) -> Tensor:
        return epoch_order(seed, epoch, len(self))


A_255TH = torch.tensor(1 / 255, dtype=torch.float64, device="cpu")  # a tensor: a number costs a small step 1% more


def scaled(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Bytes, which are pictures, from 0..255 to [0, 1] as `dtype`; floating point as `dtype`; ids as they are."""
    return x.to(dtype).mul_(A_255TH) if x.dtype == torch.uint8 else as_format(x, dtype)


def as_format(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x as `dtype` if it is floating point; whole numbers, which are ids, stay what they are."""
    return x.to(dtype) if x.is_floating_point() else x


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training set and the examples that judge it.

    `name` is resolved, never "auto". With `validation=K` at loading, `test` is the last K training examples, held out
    of `train`. `shape` is that of one example, (28, 28) for pictures, and its product is the number of features.
    `classes` names the classes in index order. `source` says in one line which data these are, and where from.
    `task` names what is learned from it, one of training/tasks.py. `load` adds the `path` that the data were read from,
    absolute, and their `hashes`.
    """

    name: str
    train: Examples
    test: Examples
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    source: str
    task: str = "classification"
    path: str = ""
    hashes: Mapping[str, str] = field(default_factory=dict)

    @property
    def example(self) -> str:
        """What one is, in a sentence: 28×28, or 7 characters."""
        sizes = "×".join(map(str, self.shape))
        return sizes if isinstance(self.train, Split) else f"{sizes} {self.train.unit}"

    def to(self, device: torch.device | str) -> Dataset:
        """The same data set on `device`."""
        return replace(self, train=self.train.to(device), test=self.test.to(device))


def hashes_of(data: Dataset) -> dict[str, str]:
    """Size, number format and a hash of each tensor: "60000×784 uint8 9f86d081884c7d65" of the training examples."""
    return {
        f"{what} {name}": f"{'×'.join(map(str, t.shape))} {str(t.dtype).removeprefix('torch.')} {_hash(t)}"
        for what, examples in (("training", data.train), ("test", data.test))
        for name, t in examples.tensors().items()
    }


def _hash(tensor: Tensor) -> str:
    return blake2b(tensor.contiguous().numpy().data, digest_size=8).hexdigest()
