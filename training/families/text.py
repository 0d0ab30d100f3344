"""What the families that read text share: their problems, and the text as segments."""

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from training.config import Config
from training.config.rules import require
from training.data import Dataset, Streams
from training.errors import UserError
from training.families.base import Problem


@dataclass(frozen=True)
class TextProblem(Problem):
    """Examples are ids, and so are their targets: one for each place. `example` is (T,), `classes` the vocabulary."""

    def draw(self, generator: Generator, batch: int) -> tuple[Tensor, Tensor]:
        ids = torch.randint(self.classes, (batch, self.example[0] + 1), generator=generator)
        return ids[:, :-1], ids[:, 1:].flatten()


def segments(data: Dataset, context: int, carries: bool) -> Dataset:
    """The text in segments of so many ids: in order, with `carries`, or shuffled.

    Raises UserError where the text, or its part for testing, is shorter than a segment.
    """

    def cut(text: object, part: str, option: str) -> Streams:
        assert isinstance(text, Streams), "a data set for the prediction of the next token has Streams"
        if len(text.ids) <= context:
            raise UserError(
                f"--context is {context:,}, but it must be at most {len(text.ids) - 1:,}: the {part} part of "
                f"{data.name} has {len(text.ids):,} {text.unit}, and a segment needs one after it to predict; give a "
                f"smaller --context, a longer text, or a larger {option} where it is given"
            )
        return replace(text, context=context, carries=carries)

    train, test = cut(data.train, "training", "--examples"), cut(data.test, "test", "--validation")
    return replace(data, train=train, test=test, shape=(context,))


def require_distribution(config: Config, data: Dataset) -> None:
    """Raises UserError for a cost that is none of a distribution over the next id, so that its bits say nothing."""
    allowed = f"softmax-cross-entropy: {data.name} is a text, and only this cost is one in bits"
    require("loss", config.loss, config.loss == "softmax-cross-entropy", allowed)
