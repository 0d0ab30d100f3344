"""Residual convolutional networks with batch normalization."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from torch import nn

from manual_backprop.layers.activations import ACTIVATIONS
from manual_backprop.models.cnn import CNN
from reference import cnn as reference
from training.config import Config
from training.config.rules import FRACTION, SIZES, UP_TO_1000, OneOf
from training.data import Dataset
from training.errors import UserError
from training.families.base import Family, Problem, picture_problem, picture_shape, require_one_activation

NAME = "cnn"


@dataclass(frozen=True)
class Options:
    """Options of the residual convolutional network."""

    channels: Annotated[tuple[int, ...], SIZES] = (16, 32, 64)
    """Channels in each stage; every stage halves the picture."""
    blocks: Annotated[int, UP_TO_1000] = 1
    """Residual blocks in each stage."""
    activation: Annotated[tuple[str, ...], OneOf(ACTIVATIONS)] = ("sigmoid",)
    """One activation for all layers but the last, which gives logits."""
    dropout: Annotated[float, FRACTION] = 0.0
    """Probability, from 0 to below 1, with which the mean of a channel is dropped."""


@dataclass(frozen=True)
class CNNConfig(Options, Config):
    model: Annotated[str, OneOf([NAME])] = NAME

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_activation(NAME, self.activation)


class CNNs(Family):
    name, summary, preset = NAME, "a residual convolutional network with batch normalization", "small-cnn"
    config, options, model = CNNConfig, Options, CNN
    rates, penalties = {"adamw": 0.01}, {"adamw": 0.05}

    def make(self, config: CNNConfig, data: Dataset) -> CNN:
        shape, classes, (activation,) = picture_shape(NAME, data), len(data.classes), config.activation
        return CNN(shape, classes, config.channels, config.blocks, activation, dropout=config.dropout)

    def twin(self, model: CNN) -> nn.Module:
        return reference.CNN(model.shape, model.classes, model.channels, model.blocks, model.activation, model.dropout)

    def problems(self) -> Iterator[Problem]:
        """That of the presets, and smaller ones: no block and several, odd sizes, down to one pixel, other activations.

        Batch norm takes away the mean of what comes in, and with it a shift by β of the norm before, where σ between
        them is nearly straight: ∂C/∂β is then what is left of sums that cancel. So no block has softplus or sigmoid.
        """
        for shape, channels, blocks, activation, loss in (
            ((1, 28, 28), (16, 32, 64), 1, "relu", "softmax-cross-entropy"),
            ((1, 5, 7), (3,), 0, "softplus", "quadratic"),
            ((2, 9, 7), (5, 4), 2, "gelu", "softmax-cross-entropy"),
            ((3, 2, 3), (4,), 1, "tanh", "squared-error"),
            ((2, 8, 5), (4, 3), 1, "silu", "sigmoid-cross-entropy"),
            ((1, 7, 5), (6,), 3, "scaled_tanh", "softmax-cross-entropy"),
        ):
            model = CNN(shape, 7, channels, blocks, activation)
            yield picture_problem(model, f"{'-'.join(map(str, channels))}, {blocks} blocks", loss)

    def sizes(self, config: CNNConfig) -> str:
        return f"--channels {' '.join(map(str, config.channels))}"

    def require_fit(self, config: CNNConfig, data: Dataset) -> None:
        """Batch norm can train on two values per channel at least; the last stage has the fewest."""
        height, width = (size >> len(config.channels) for size in data.shape[-2:])
        fewest = len(data.train) % config.batch_size or config.batch_size
        if fewest * height * width < 2:
            batch = "every mini-batch" if config.batch_size == 1 else "an epoch's last mini-batch"
            raise UserError(
                f"--batch-size is {config.batch_size:,}, which leaves {batch} 1 of {len(data.train):,} examples, and "
                "the maps of the last stage are 1×1: batch norm needs 2 values per channel, so give another "
                "--batch-size, or fewer --channels"
            )
