"""The network that a configuration asks for, by hand, and its twin."""

from collections.abc import Mapping
from math import prod
from typing import Protocol

from torch import Tensor, nn

from manual_backprop.models.cnn import CNN
from manual_backprop.models.lenet5 import LeNet5
from manual_backprop.models.mlp import MLP
from manual_backprop.parameters import Receiver, Shape
from manual_backprop.tape import Tape
from reference import cnn as reference_cnn
from reference import lenet5 as reference_lenet5
from reference import mlp as reference_mlp
from training.config import Config
from training.data import Dataset
from training.errors import UserError

Buffers = Mapping[str, Tensor]


class Model(Protocol):
    """What a model of manual_backprop/models offers (docs/contracts.md).

    Where a gradient is zero in exact arithmetic (a bias before batch norm), it also has `zeros`, which maps its name to
    those of the calls whose δs cancel in it.
    """

    @property
    def shapes(self) -> Mapping[str, Shape]: ...

    def buffers(self) -> Buffers: ...

    def forward(self, p: Mapping[str, Tensor], x: Tensor, tape: Tape) -> Tensor: ...

    def backward(self, p: Mapping[str, Tensor], d_output: Tensor, g: Receiver, tape: Tape) -> Tensor | None: ...


def make_model(config: Config, data: Dataset) -> MLP | LeNet5 | CNN:
    """Raises UserError where the network does not fit the examples."""
    classes = len(data.classes)
    if config.model == "mlp":
        return MLP((prod(data.shape), *config.hidden, classes), config.activations, dropout=config.dropout)
    (activation,) = config.activation
    shape = picture_shape(config, data)
    try:
        if config.model == "lenet5":
            return LeNet5(shape, classes, activation)
        return CNN(shape, classes, config.channels, config.blocks, activation, dropout=config.dropout)
    except ValueError as error:
        raise UserError(f"--model {config.model} does not fit {data.name}: {error}") from error


def make_twin(model: Model) -> nn.Module:
    """The same network as an `nn.Module`, at initial values of torch's own."""
    if isinstance(model, MLP):
        return reference_mlp.MLP(model.sizes, model.activations, model.dropout)
    if isinstance(model, LeNet5):
        return reference_lenet5.LeNet5(model.shape, model.classes, model.activation)
    assert isinstance(model, CNN)
    return reference_cnn.CNN(model.shape, model.classes, model.channels, model.blocks, model.activation, model.dropout)


def picture_shape(config: Config, data: Dataset) -> tuple[int, int, int]:
    """(channels, height, width) of an example."""
    if len(data.shape) == 2:
        return (1, *data.shape)
    if len(data.shape) == 3:
        channels, height, width = data.shape
        return channels, height, width
    sizes = "×".join(map(str, data.shape))
    raise UserError(
        f"--model {config.model} reads pictures, height×width or channels×height×width, and an example of {data.name} "
        f"is {sizes}: give --model mlp"
    )
