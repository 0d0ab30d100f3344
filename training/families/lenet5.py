"""LeNet-5, as published but for logits and the plain means between the layers."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from torch import nn

from manual_backprop.layers.activations import ACTIVATIONS
from manual_backprop.models.lenet5 import LeNet5
from reference import lenet5 as reference
from training.config import Config
from training.config.rules import OneOf
from training.data import Dataset
from training.families.base import Family, Problem, picture_problem, picture_shape, require_one_activation

NAME = "lenet5"


@dataclass(frozen=True)
class Options:
    """Options of LeNet-5."""

    activation: Annotated[tuple[str, ...], OneOf(ACTIVATIONS)] = ("sigmoid",)
    """One activation for all layers but the last, which gives logits."""


@dataclass(frozen=True)
class LeNet5Config(Options, Config):
    model: Annotated[str, OneOf([NAME])] = NAME

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_activation(NAME, self.activation)


class LeNets(Family):
    name, summary, preset = NAME, "LeNet-5", "lenet5"
    config, options, model = LeNet5Config, Options, LeNet5
    rates, penalties = {"adamw": 0.003}, {"adamw": 0.05}

    def make(self, config: LeNet5Config, data: Dataset) -> LeNet5:
        return LeNet5(picture_shape(NAME, data), len(data.classes), *config.activation)

    def twin(self, model: LeNet5) -> nn.Module:
        return reference.LeNet5(model.shape, model.classes, model.activation)

    def problems(self) -> Iterator[Problem]:
        """As published, for color, and with other activations and costs."""
        for shape, activation, loss in (
            ((1, 28, 28), "scaled_tanh", "softmax-cross-entropy"),
            ((3, 32, 32), "scaled_tanh", "quadratic"),
            ((2, 28, 28), "relu", "sigmoid-cross-entropy"),
            ((1, 32, 32), "gelu", "squared-error"),
        ):
            yield picture_problem(LeNet5(shape, 7, activation), f"{shape[0]}×{shape[1]}×{shape[2]}", loss)
