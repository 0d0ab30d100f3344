"""What the families that read text share: their problems, and the text as segments."""

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from training.data import Dataset, Streams
from training.families.base import Problem


@dataclass(frozen=True)
class TextProblem(Problem):
    """Examples are ids, and so are their targets: one for each place. `example` is (T,), `classes` the vocabulary."""

    def draw(self, generator: Generator, batch: int) -> tuple[Tensor, Tensor]:
        ids = torch.randint(self.classes, (batch, self.example[0] + 1), generator=generator)
        return ids[:, :-1], ids[:, 1:].flatten()


def segments(data: Dataset, context: int, carries: bool) -> Dataset:
    """The text in segments of so many ids: in order, with `carries`, or shuffled."""

    def cut(text: object) -> Streams:
        assert isinstance(text, Streams), "a data set for the prediction of the next token has Streams"
        return replace(text, context=context, carries=carries)

    return replace(data, train=cut(data.train), test=cut(data.test), shape=(context,))
