"""Recurrent networks: pictures read row by row, and texts character by character."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Annotated

from torch import nn

from manual_backprop.models.recurrent import CELLS, Recurrent
from reference import recurrent as reference
from training.config import Config
from training.config.rules import COUNT, FRACTION, OneOf, Range, require
from training.data import Dataset
from training.errors import UserError
from training.families.base import Family, Problem, Values, picture_problem, picture_shape, require_one_activation
from training.families.text import TextProblem, require_distribution, segments
from training.tasks import CLASSIFICATION, NEXT_TOKEN

NAME = "recurrent"
CONTEXT = 64


@dataclass(frozen=True)
class Options:
    """Options of the recurrent network."""

    cell: Annotated[str, OneOf(CELLS)] = "lstm"
    """Kind of the layers: simple recurrent (rnn), long short-term memory (lstm), or gated recurrent units (gru)."""
    width: Annotated[int, COUNT] = 128
    """Units in each layer."""
    depth: Annotated[int, Range("a whole number from 1 to 100", lambda n: 1 <= n <= 100)] = 1
    """Layers, each of which reads the states of the one below."""
    bidirectional: bool = False
    """Read the rows of a picture in both directions."""
    context: Annotated[int, COUNT] = CONTEXT
    """Characters or bytes of a text that a step reads. The gradient goes back no further; the state is carried on."""
    activation: Annotated[tuple[str, ...], OneOf(("tanh", "relu"))] = ("tanh",)
    """Activation of rnn; lstm and gru have tanh."""
    dropout: Annotated[float, FRACTION] = 0.0
    """Probability, from 0 to below 1, with which an output of a layer is dropped before the next one reads it."""


@dataclass(frozen=True)
class RecurrentConfig(Options, Config):
    model: Annotated[str, OneOf([NAME])] = NAME

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_activation(NAME, self.activation)
        require(
            "activation", self.activation, self.cell == "rnn" or self.activation == ("tanh",), f"tanh in {self.cell}"
        )
        if self.dropout and self.depth == 1:
            raise UserError(
                f"--dropout is {self.dropout:g}, but it acts between layers, and --depth is 1: give --depth 2, "
                "or leave it out"
            )


class Recurrents(Family):
    name, summary, preset = NAME, "a recurrent network for pictures, row by row, and for texts", "rows-lstm"
    config, options, model = RecurrentConfig, Options, Recurrent
    tasks = (CLASSIFICATION.name, NEXT_TOKEN.name)
    rates: Mapping[str, float] = {"adam": 0.01}

    def arrange(self, config: RecurrentConfig, data: Dataset) -> Dataset:
        return segments(data, config.context, carries=True) if data.task == NEXT_TOKEN.name else data

    def make(self, config: RecurrentConfig, data: Dataset) -> Recurrent:
        shape = () if data.task == NEXT_TOKEN.name else picture_shape(NAME, data)
        if config.bidirectional and not shape:
            raise UserError(
                f"--bidirectional goes with pictures, and {data.name} is a text: in the other direction the network "
                "would read the characters that it is to predict; leave it out"
            )
        (activation,) = config.activation
        sizes = len(data.classes), config.width, config.depth
        return Recurrent(config.cell, shape, *sizes, config.bidirectional, activation, dropout=config.dropout)

    def twin(self, model: Recurrent) -> nn.Module:
        return reference.Recurrent(*(getattr(model, field.name) for field in fields(Recurrent)))

    def problems(self) -> Iterator[Problem]:
        """Every cell at both tasks: one layer and several, one direction and both, odd sizes, down to one step."""
        for cell in CELLS:
            for shape, width, depth, both in (
                ((1, 7, 5), 6, 1, False),
                ((2, 4, 3), 5, 2, True),
                ((1, 2, 9), 4, 3, False),
            ):
                model = Recurrent(cell, shape, 7, width, depth, both)
                layers = f"{depth} layer{'s' if depth > 1 else ''}{', both directions' if both else ''}"
                yield picture_problem(model, f"{cell}, {layers}", "softmax-cross-entropy")
            for T, depth in ((6, 1), (1, 2)):
                text = Recurrent(cell, (), 7, 5, depth, embedded=4)
                title = f"{cell}, 7 ids, {depth} × 5 units, {T} steps"
                yield TextProblem(f"{cell}, text", "softmax-cross-entropy", text, (T,), 7, title)
        relu = Recurrent("rnn", (1, 5, 4), 7, 6, 2, True, "relu")
        yield picture_problem(relu, "rnn of relu, 2 layers, both directions", "quadratic")

    def sizes(self, config: RecurrentConfig) -> str:
        return f"--cell {config.cell} --width {config.width} --depth {config.depth}"

    def require_fit(self, config: RecurrentConfig, data: Dataset) -> None:
        if data.task == NEXT_TOKEN.name:
            require_distribution(config, data)
        elif config.context != CONTEXT:
            raise UserError(
                f"--context is {config.context}, but {data.name} has pictures, whose steps are their rows: leave it out"
            )

    def reasons(self, values: Values, usual: Values) -> list[str]:
        return [values["cell"]] if values["cell"] != usual["cell"] else []
