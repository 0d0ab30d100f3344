"""A text as training reads it: segments of T ids, each id's target the id after it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from training.data.dataset import scaled
from training.data.order import epoch_order
from training.errors import UserError


@dataclass(frozen=True, eq=False)
class Streams:
    """A text `ids` (N,) int64, cut into segments of T = `context` ids.

    Segment i is x = ids[iT : iT+T] with the targets y = ids[iT+1 : iT+T+1]. With `carries` the B sequences of a
    mini-batch are B parallel streams, each a contiguous part of the text, read in order: the same order in every epoch,
    and a model's state may go on from step to step. Without, segments are independent windows, shuffled in every epoch.

    What does not fill a segment or a stream is left out, and `leftover` counts it. `unit` is what an id stands for.
    """

    ids: Tensor
    context: int
    carries: bool = True
    unit: str = "characters"

    def __post_init__(self) -> None:
        if self.ids.dtype != torch.int64 or self.ids.ndim != 1:
            raise ValueError(
                f"ids have the dtype {self.ids.dtype} and the shape {tuple(self.ids.shape)}, "
                "but they must be int64 and in one row"
            )
        if self.context < 1:
            raise ValueError(f"context is {self.context}, but it must be a whole number from 1")

    def __len__(self) -> int:
        return max(len(self.ids) - 1, 0) // self.context

    @property
    def targets(self) -> int:
        return self.context

    @property
    def device(self) -> torch.device:
        return self.ids.device

    def to(self, device: torch.device | str) -> Streams:
        return replace(self, ids=self.ids.to(device))

    def part(self, start: int, stop: int) -> Streams:
        return replace(self, ids=self.ids[start * self.context : stop * self.context + 1])

    def first(self, count: int) -> Streams:
        return self.part(0, count)

    def tensors(self) -> dict[str, Tensor]:
        return {"ids": self.ids}

    def stored(self, indices: Tensor) -> Tensor:
        return self._segments(indices)[:, :-1]

    def batch(self, indices: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        segments = self._segments(indices)
        return scaled(segments[:, :-1], dtype), segments[:, 1:].flatten()

    def reading(self, batch_size: int) -> str:
        steps = self.steps(batch_size)
        if self.carries:
            how = f"{batch_size:,} parallel streams of {steps * self.context:,} {self.unit}, {self.context:,} in a step"
        else:
            how = f"{len(self):,} windows of {self.context:,} {self.unit}, {batch_size:,} in a step"
        return f"an epoch reads {how}; {self.leftover(batch_size):,} at the end are left out"

    def blocks(self, size: int) -> Iterator[Tensor]:
        """With `carries` the text is cut into at most `size` streams of equal length; the last one may end early."""
        every = torch.arange(len(self), device=self.device)
        if not self.carries:
            yield from every.split(size)
            return
        steps = -(-len(self) // min(size, len(self)))
        for step in range(steps):
            yield every[step::steps]

    def steps(self, batch_size: int) -> int:
        """With `carries` as many as a stream has segments; else the last mini-batch may be smaller.

        Raises UserError where the text is too short for so many streams.
        """
        if not self.carries:
            return -(-len(self) // batch_size)
        if batch_size > len(self):
            raise UserError(
                f"--batch-size is {batch_size:,}, but it must be at most {len(self):,}: a text of {len(self.ids):,} "
                f"{self.unit} has so many segments of {self.context:,}, and every stream needs one; give a smaller "
                "--batch-size or --context, or a longer text"
            )
        return len(self) // batch_size

    def order(self, seed: int, epoch: int, batch_size: int) -> Tensor:
        if not self.carries:
            return epoch_order(seed, epoch, len(self))
        steps = self.steps(batch_size)
        streams = torch.arange(batch_size * steps).view(batch_size, steps)  # stream b begins at segment b·steps
        return streams.T.flatten()

    def leftover(self, batch_size: int) -> int:
        """How many ids, at the end of the text, an epoch does not read."""
        segments = batch_size * self.steps(batch_size) if self.carries else len(self)
        return len(self.ids) - (segments * self.context + 1)

    def _segments(self, indices: Tensor) -> Tensor:
        """(B, T + 1): the segments at these indices, each with the id after it."""
        return self.ids[indices.unsqueeze(1) * self.context + torch.arange(self.context + 1, device=indices.device)]
