"""Multilayer perceptrons: any depth, any activation per layer."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Annotated

from torch import nn

from manual_backprop.layers.activations import ACTIVATIONS
from manual_backprop.losses import LOSSES
from manual_backprop.models.mlp import MLP
from reference import mlp as reference
from training.config import Config, takes_logits
from training.config.rules import FRACTION, SIZES, OneOf, require
from training.data import Dataset
from training.errors import UserError
from training.families.base import UNBOUNDED, Family, Problem, Values

NAME = "mlp"


@dataclass(frozen=True)
class Options:
    """Options of the perceptron."""

    hidden: Annotated[tuple[int, ...], SIZES] = (16, 16)
    """Neurons in each hidden layer."""
    activation: Annotated[tuple[str, ...], OneOf(ACTIVATIONS)] = ("sigmoid",)
    """One activation for all layers, or one per layer with the output layer's last. Left out, the output layer's is
    identity if the cost takes logits, else sigmoid if the hidden one has no bounds."""
    dropout: Annotated[float, FRACTION] = 0.0
    """Probability, from 0 to below 1, with which a hidden activation is dropped."""


@dataclass(frozen=True)
class MLPConfig(Options, Config):
    model: Annotated[str, OneOf([NAME])] = NAME

    def __post_init__(self) -> None:
        super().__post_init__()
        layers = len(self.hidden) + 1
        require(
            "activation",
            self.activation,
            len(self.activation) in (1, layers),
            f"one name for all layers or {layers} names, one per layer with the output layer's last",
        )
        if takes_logits(self.loss) and len(self.activation) == layers and self.activation[-1] != "identity":
            raise UserError(
                f"{self.loss} works on logits, so the output layer's activation must be identity, "
                f"not {self.activation[-1]}: give identity last, or one activation for all hidden layers"
            )

    @property
    def activations(self) -> tuple[str, ...]:
        """One per layer."""
        layers = len(self.hidden) + 1
        if len(self.activation) == layers:
            return self.activation
        return (*self.activation * (layers - 1), "identity" if takes_logits(self.loss) else self.activation[0])


class Perceptrons(Family):
    name, summary, preset = NAME, "a perceptron", "3b1b"
    config, options, model = MLPConfig, Options, MLP
    one_thread_below = 10_000_000

    def make(self, config: MLPConfig, data: Dataset) -> MLP:
        sizes = (prod(data.shape), *config.hidden, len(data.classes))
        return MLP(sizes, config.activations, dropout=config.dropout)

    def twin(self, model: MLP) -> nn.Module:
        return reference.MLP(model.sizes, model.activations, model.dropout)

    def problems(self) -> Iterator[Problem]:
        """The network of the lessons, then every activation with every cost at depths 1 to 4."""
        yield _problem((784, 16, 16, 10), "sigmoid", "quadratic")
        for activation in ACTIVATIONS:
            for loss in LOSSES:
                for depth in range(1, 5):
                    yield _problem((7, 5, 6, 3, 4)[: depth + 1], activation, loss)

    def settled(self, config: MLPConfig) -> MLPConfig:
        return replace(config, activation=config.activations)

    def sizes(self, config: MLPConfig) -> str:
        return f"--hidden {' '.join(map(str, config.hidden))}"

    def names_output(self, values: Values) -> bool:
        return len(values["activation"]) == len(values["hidden"]) + 1 > 1

    def bounded(self, values: Values) -> tuple[str, ...]:
        names: tuple[str, ...] = values["activation"]
        if len(names) == 1 and names[0] in UNBOUNDED and not takes_logits(values["loss"]):
            return (*names * len(values["hidden"]), "sigmoid")
        return names

    def output_activation(self, values: Values) -> str:
        if not self.names_output(values) and not takes_logits(values["loss"]):
            return self.activation(values)[0]
        return super().output_activation(values)

    def of_the_lessons(self, values: Values) -> bool:
        few = len(values["hidden"]) <= 2 and max(values["hidden"], default=0) <= 30
        plain = values["optimizer"] == "sgd" and not values["momentum"]
        return few and plain and self._only_sigmoids(values) and values["activation"][-1] in ("sigmoid", "identity")

    def shrinks_gradients(self, values: Values) -> bool:
        unbounded = self.output_activation(values) in UNBOUNDED and not takes_logits(values["loss"])
        return self._only_sigmoids(values) and not unbounded

    def _only_sigmoids(self, values: Values) -> bool:
        return set(self.hidden_activations(values)) == {"sigmoid"}

    def reasons(self, values: Values, usual: Values) -> list[str]:
        if values["hidden"] == usual["hidden"]:
            return []
        return [f"hidden layers of {' '.join(map(str, values['hidden']))}"]

    def advice(self, config: MLPConfig) -> list[str]:
        deep = len(config.hidden) > 2 and "relu" not in self.hidden_activations(vars(config))
        tips = ["--activation relu", "fewer layers"] if deep else []
        return [*tips, "wider layers"] if min(config.hidden) < 8 else tips


def _problem(sizes: tuple[int, ...], activation: str, loss: str) -> Problem:
    last = "identity" if takes_logits(loss) else activation
    model = MLP(sizes, (*[activation] * (len(sizes) - 2), last))
    title = f"{'-'.join(map(str, sizes))}, {activation}, {loss} cost"
    return Problem(activation, loss, model, sizes[:1], sizes[-1], title)
