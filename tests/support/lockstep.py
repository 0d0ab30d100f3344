"""A small learner of every family, on real data. A new family is tried as its preset has it, unless SMALL says more."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tests.support.running import ROOT, learner_of, resolved
from tests.support.text.families import Recurrents, Transformers
from training.config import Config
from training.data import Dataset, Split, load
from training.families import FAMILIES, defaults
from training.families.configure import configure, preset_values, settings
from training.families.networks import arranged, family_of
from training.learners.base import Learner
from training.tasks import CLASSIFICATION

TEXTS = [Recurrents.name, Transformers.name]  # known as long as `register` of tests/support/text lets them be
NAMES = [*FAMILIES, *TEXTS]
DTYPES = [torch.float64, torch.float32, torch.bfloat16]
SOFTMAX = {"loss": "softmax-cross-entropy"}

SMALL: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": (12, 9), "activation": ("tanh", "relu", "identity"), "init": "xavier", **SOFTMAX},
    "cnn": {"channels": (3, 4)},
    "recurrent": {"width": 9, "depth": 2},
}
THINNED = ["mlp", "cnn", "recurrent"]  # these read pictures of any size


@cache
def pictures() -> Dataset:
    """400 of the bundled digits, in bytes."""
    sample = load("sample")
    train, test = (Split(part.x[:400], part.y[:400]) for part in (sample.train, sample.test))  # type: ignore[attr-defined]
    return Dataset("sample", train, test, sample.shape, sample.classes, sample.source)


@cache
def thinned() -> Dataset:
    """Every third pixel of every third row: 10×10, with edges that are always dark."""
    whole = pictures()
    parts = (Split(part.x.view(-1, 28, 28)[:, ::3, ::3].flatten(1), part.y) for part in (whole.train, whole.test))  # type: ignore[attr-defined]
    return Dataset("sample", *parts, (10, 10), whole.classes, whole.source)


@cache
def text() -> Dataset:
    """960 characters: 136 segments of 7 are 27 steps an epoch in 5 streams, 119 of 8 are 24 in any order."""
    return load("text", ROOT / "LICENSE")


def small(
    name: str, impl: str = "manual", dtype: torch.dtype = torch.float64, **options: Any
) -> tuple[Config, Dataset]:
    """The configuration of a family's small learner, with nothing left open, and the data."""
    family = family_of(name)
    values = preset_values(family.preset) | SMALL.get(name, {}) | options
    values |= {"impl": impl, "dtype": str(dtype).removeprefix("torch."), "device": "cpu"}
    config = configure(**defaults.fill(settings(values), values.keys()))
    if options.get("dataset") == "text" or CLASSIFICATION.name not in family.tasks:
        data = text()
    else:
        data = thinned() if name in THINNED else pictures()
    data = arranged(config, data)
    return resolved(config, data), data


def learner(name: str, impl: str = "manual", dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    return learner_of(*small(name, impl, dtype, **options))


def every_implementation(name: str, **options: Any) -> Iterator[Any]:
    yield from (learner(name, impl, **options) for impl in ("manual", "reference", "both"))


def batches(of: Any, first: int, steps: int) -> Tensor:
    """The mini-batches of the first epoch from this step on: 5 streams or windows of a text, 13 pictures."""
    train = of.train if hasattr(of, "train") else of.manual.train
    size = 13 if isinstance(train, Split) else 5
    return train.order(0, 0, size)[size * first : size * (first + steps)].view(-1, size)


def advance(of: Learner, steps: int, first: int | None = None, lr: float = 0.01) -> Tensor:
    """Go on where the learner is in the epoch, or from its `first` step."""
    first = of.steps if first is None else first
    return of.advance(batches(of, first, steps), torch.full((steps,), lr, dtype=torch.float64))


def in_epochs(of: Learner, steps: int, lr: float) -> Tensor:
    """Steps in epochs of 20."""
    losses = []
    for start in range(0, steps, 20):
        losses.append(advance(of, min(20, steps - start), first=0, lr=lr))
        of.forget()
    return torch.cat(losses)
