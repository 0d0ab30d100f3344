"""What a family of networks is: its options, its networks by hand and by autograd, and what suits them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from training.config import Config
from training.config.rules import require
from training.data import Dataset
from training.errors import UserError
from training.families.model import Model

PRESETS = Path(__file__).parent / "presets"
RECTIFIERS = ("relu", "leaky_relu", "softplus", "gelu", "silu", "gelu_tanh")
UNBOUNDED = (*RECTIFIERS, "identity")  # as outputs they do not stay between the targets, 0 and 1

Values = Mapping[str, Any]  # the settings of a configuration, by name


@dataclass(frozen=True)
class Problem:
    """A hand-written model with its cost, to be verified at random parameters, on random examples."""

    variant: str  # its row in the table
    loss: str
    model: Model
    example: tuple[int, ...]  # the shape of one
    classes: int
    title: str

    def draw(self, generator: Generator, batch: int) -> tuple[Tensor, Tensor]:
        """Random examples x (batch, …), in float64 if they are no ids, and their targets y."""
        x = torch.randn(batch, *self.example, generator=generator, dtype=torch.float64)
        return x, torch.randint(self.classes, (batch,), generator=generator)


class Family:
    """One file of training/families, and all that the rest of training knows of its networks.

    A family defines the attributes without a value and `make`, `twin` and `problems`. The other attributes and methods
    serve most families as they are.
    """

    name: str = ""  # of --model
    summary: str = ""  # for the help of --model
    preset: str = ""  # where only the model is named
    config: type[Config] = Config  # the options and all common settings, as a frozen dataclass
    options: type = object  # the options alone, the group of the family in --help
    model: type = object  # of what `make` returns

    rates: Mapping[str, float] = {}  # learning rates of its own, by optimizer
    penalties: Mapping[str, float] = {}  # λ of L2, by optimizer; 0 for the others
    tasks: tuple[str, ...] = ("classification",)  # names of training/tasks.py
    one_thread_below: int = 0  # multiplications in a step below which one thread is fastest

    def make(self, config: Any, data: Dataset) -> Model:
        """The hand-written model; ValueError or UserError where it does not fit the examples."""
        raise NotImplementedError

    def twin(self, model: Any) -> nn.Module:
        """The same network as an `nn.Module`, at initial values of torch's own."""
        raise NotImplementedError

    def problems(self) -> Iterator[Problem]:
        """What tests and verify.py try the networks on."""
        raise NotImplementedError

    def require_whole(self, name: str) -> None:
        """Raises UserError for the first part that was forgotten; `name` is that of the registry."""
        for part in ("name", "summary", "preset", "config", "options", "model", "make", "twin", "problems"):
            if getattr(type(self), part) is getattr(Family, part):
                raise UserError(forgotten(name, part, f"has to define {part}"))
        if not (PRESETS / f"{self.preset}.toml").is_file():
            raise UserError(forgotten(name, "preset", f"names {self.preset!r}, which is no file in {PRESETS.name}/"))

    def settled(self, config: Any) -> Any:
        """The configuration with none of the family's own options left open."""
        return config

    def arrange(self, config: Any, data: Dataset) -> Dataset:
        """The data set as these networks read it: a text in segments of the length that an option gives."""
        return data

    def require_fit(self, config: Any, data: Dataset) -> None:
        """Raises UserError for settings that do not fit the data, beside what `make` refuses."""

    def sizes(self, config: Any) -> str:
        """The options that decide how many parameters there are, as a command line has them."""
        return f"--model {self.name}"

    def names_output(self, values: Values) -> bool:
        """Whether the last name of `activation` is that of the output layer."""
        return False

    def bounded(self, values: Values) -> tuple[str, ...]:
        """`activation`, with sigmoid last where the cost needs outputs from 0 to 1 and none is named for them."""
        return self.activation(values)

    def activation(self, values: Values) -> tuple[str, ...]:
        return tuple(values.get("activation", ()))

    def hidden_activations(self, values: Values) -> tuple[str, ...]:
        """Without that of the output layer, if one is named."""
        names = self.activation(values)
        return names[:-1] if self.names_output(values) else names

    def output_activation(self, values: Values) -> str:
        return self.activation(values)[-1] if self.names_output(values) else "identity"

    def of_the_lessons(self, values: Values) -> bool:
        """Whether this is the network of the lessons: few sigmoids, trained by plain SGD."""
        return False

    def shrinks_gradients(self, values: Values) -> bool:
        """Whether each layer has a factor σ′ ≤ ¼, so that plain gradient steps need larger rates."""
        return False

    def reasons(self, values: Values, usual: Values) -> list[str]:
        """What of the options differs from the usual ones and has a part in what is filled in."""
        return []

    def advice(self, config: Any) -> list[str]:
        """What else may help a network that does not learn."""
        return []


def forgotten(name: str, part: str, remedy: str) -> str:
    return f"the family {name} has no {part}: its file in training/families {remedy} (docs/adding.md)"


def picture_shape(name: str, data: Dataset) -> tuple[int, int, int]:
    """(channels, height, width) of an example; UserError where the model of this name cannot read it."""
    if len(data.shape) == 2:
        return (1, *data.shape)
    if len(data.shape) == 3:
        channels, height, width = data.shape
        return channels, height, width
    raise UserError(
        f"--model {name} reads pictures, height×width or channels×height×width, and an example of {data.name} "
        f"is {data.example}: give --model {Config.model}"
    )


def picture_problem(model: Any, variant: str, loss: str) -> Problem:
    """A problem of a model that reads pictures of `model.shape`."""
    sizes = "×".join(map(str, model.shape))
    title = f"{variant}, {model.activation}, {loss} cost, {sizes}"
    return Problem(variant, loss, model, (prod(model.shape),), model.classes, title)


def require_one_activation(name: str, activation: tuple[str, ...]) -> None:
    require("activation", activation, len(activation) == 1, f"one name for all layers of {name}")
