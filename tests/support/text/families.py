"""The two text families as training sees them, and what registers both for a test."""

import json
from dataclasses import dataclass
from typing import Annotated

from tests.support.text.recurrent import Recurrent, RecurrentTwin
from tests.support.text.transformer import Transformer, TransformerTwin
from training.config import Config
from training.config.rules import COUNT, FRACTION, OneOf
from training.families import FAMILIES, base
from training.families.base import Family
from training.families.text import TextProblem, segments
from training.tasks import NEXT_TOKEN

PRESET = {"dataset": "text", "loss": "softmax-cross-entropy", "init": "xavier", "optimizer": "adam", "lr": 0.01}
PRESET |= {"schedule": "constant", "batch_size": 5, "epochs": 1}


@dataclass(frozen=True)
class RecurrentOptions:
    """Options of the recurrent network."""

    context: Annotated[int, COUNT] = 7
    """Characters in a segment."""


@dataclass(frozen=True)
class RecurrentConfig(RecurrentOptions, Config):
    model: Annotated[str, OneOf(["cell"])] = "cell"


class Recurrents(Family):
    name, summary, preset, tasks = "cell", "a recurrent network", "cell", (NEXT_TOKEN.name,)
    config, options, model = RecurrentConfig, RecurrentOptions, Recurrent

    def arrange(self, config, data):
        return segments(data, config.context, carries=True)

    def make(self, config, data):
        return Recurrent(len(data.classes), 6, 9)

    def twin(self, model):
        return RecurrentTwin(model)

    def problems(self):
        yield TextProblem("5 steps", "softmax-cross-entropy", Recurrent(7, 4, 6), (5,), 7, "7-4-6, 5 steps")


@dataclass(frozen=True)
class TransformerOptions:
    """Options of the transformer."""

    context: Annotated[int, COUNT] = 8
    """Characters in a segment."""
    dropout: Annotated[float, FRACTION] = 0.2
    """Probability with which an activation is dropped."""


@dataclass(frozen=True)
class TransformerConfig(TransformerOptions, Config):
    model: Annotated[str, OneOf(["block"])] = "block"


class Transformers(Family):
    name, summary, preset, tasks = "block", "a transformer block", "block", (NEXT_TOKEN.name,)
    config, options, model = TransformerConfig, TransformerOptions, Transformer

    def arrange(self, config, data):
        return segments(data, config.context, carries=False)

    def make(self, config, data):
        return Transformer(len(data.classes), config.context, 12, 3, config.dropout)

    def twin(self, model):
        return TransformerTwin(model)

    def problems(self):
        yield TextProblem("2 heads", "softmax-cross-entropy", Transformer(7, 5, 6, 2), (5,), 7, "2 heads, 5 places")


def register(monkeypatch, directory):
    """Both families with their presets, as long as the test runs."""
    for path in base.PRESETS.glob("*.toml"):
        (directory / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(base, "PRESETS", directory)
    monkeypatch.setattr("training.families.configure.PRESETS", directory)
    for family in (Recurrents(), Transformers()):
        lines = (f"{name} = {json.dumps(value)}\n" for name, value in {"model": family.name, **PRESET}.items())
        (directory / f"{family.name}.toml").write_text("".join(lines), encoding="utf-8")
        monkeypatch.setitem(FAMILIES, family.name, family)
