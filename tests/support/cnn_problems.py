"""The convolutional networks at small sizes, with all that a pass over them needs, none of it at a default."""

from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from manual_backprop.models.cnn import CNN
from manual_backprop.models.lenet5 import LeNet5
from manual_backprop.tape import Noise
from tests.support.both_ways import LOSSES, TWIN_LOSSES, by_autograd, by_hand, by_twin, random_batch, random_parameters
from training.data.noise import dropout_noise
from training.families.networks import make_twin

GAINS = {"relu": 1.5, "leaky_relu": 1.5, "sigmoid": 3.0, "gelu": 2.0, "silu": 2.0}


@dataclass(frozen=True)
class Problem:
    """A model with its cost, at random parameters and running statistics, and a batch."""

    model: CNN | LeNet5
    loss: str
    batch: int
    seed: int = 1
    gain: float = 0.0  # that of the activation, unless given

    @property
    def params(self) -> dict[str, Tensor]:
        gain = self.gain or GAINS.get(self.model.activation, 1.3)
        return random_parameters(self.model, seed=self.seed, gain=gain)

    @property
    def data(self) -> tuple[Tensor, Tensor]:
        return random_batch(self.batch, prod(self.model.shape), self.model.classes, seed=self.seed + 1)

    @property
    def buffers(self) -> dict[str, Tensor]:
        """The model's, moved away from their zeros and ones."""
        generator = torch.Generator().manual_seed(self.seed + 2)
        return {
            name: tensor.double() + 0.2 + torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
            if tensor.is_floating_point()
            else tensor + 5
            for name, tensor in self.model.buffers().items()
        }

    def dropped(self, probability: float) -> tuple["Problem", Noise]:
        """The problem with dropout, and its noise."""
        model = replace(self.model, dropout=probability)  # type: ignore[call-arg]
        return replace(self, model=model), dropout_noise(seed=3)(0, torch.device("cpu"), torch.float64)

    def by_hand(self, x: Tensor | None = None, model: Any = None, **pass_on: Any) -> dict[str, Tensor]:
        """As in both_ways.py, of this problem; of another x or a wrong model where one is given."""
        given, y = self.data
        pass_on = {"buffers": self.buffers, **pass_on}
        return by_hand(model or self.model, LOSSES[self.loss], self.params, given if x is None else x, y, **pass_on)

    def by_autograd(self, **pass_on: Any) -> dict[str, Tensor]:
        return by_autograd(
            self.model, LOSSES[self.loss], self.params, *self.data, **{"buffers": self.buffers, **pass_on}
        )

    def by_twin(self, training: bool = True, **pass_on: Any) -> dict[str, Tensor]:
        twin, loss = make_twin(self.model).train(training), TWIN_LOSSES[self.loss]
        return by_twin(twin, loss, self.params, *self.data, **{"buffers": self.buffers, **pass_on})


# Together: 1 to 3 channels, odd and even sizes, 0 to 2 blocks, every cost, batches from 1, maps down to one pixel.
CNNS = {
    "no block": Problem(CNN((1, 5, 7), 4, (3,), 0, "relu"), "quadratic", 7),
    "two blocks": Problem(CNN((2, 9, 7), 3, (5, 4), 2, "gelu"), "softmax-cross-entropy", 5),
    "one pixel": Problem(CNN((3, 2, 3), 5, (4,), 1, "tanh"), "squared-error", 9),
    "three stages to one pixel": Problem(CNN((2, 11, 9), 4, (5, 3, 4), 1, "leaky_relu"), "sigmoid-cross-entropy", 3),
    "a batch of one": Problem(CNN((3, 7, 5), 6, (4,), 1, "silu"), "softmax-cross-entropy", 1),
    "smoothed": Problem(CNN((1, 6, 6), 3, (4, 2), 0, "softplus"), "smoothed", 11),
    "one channel, one class": Problem(CNN((1, 4, 5), 1, (1,), 0, "identity"), "quadratic", 3),
    "sigmoid": Problem(CNN((2, 5, 5), 2, (3, 2), 0, "sigmoid"), "sigmoid-cross-entropy", 13),
    "scaled tanh": Problem(CNN((2, 8, 6), 7, (3, 5), 1, "scaled_tanh"), "squared-error", 5),
    "gelu by tanh": Problem(CNN((1, 7, 9), 3, (6,), 2, "gelu_tanh"), "quadratic", 4),
}
LENETS = {
    "as published": Problem(LeNet5((1, 28, 28), 10), "softmax-cross-entropy", 3),
    "color": Problem(LeNet5((3, 32, 32), 7, "gelu"), "quadratic", 5),
    "two channels": Problem(LeNet5((2, 28, 28), 3, "relu"), "sigmoid-cross-entropy", 1),
    "unpadded": Problem(LeNet5((1, 32, 32), 2, "softplus"), "squared-error", 2),
    "smoothed tanh": Problem(LeNet5((1, 28, 28), 4, "tanh"), "smoothed", 7),
}
PROBLEMS = {f"LeNet-5, {name}": problem for name, problem in LENETS.items()} | {
    f"CNN, {name}": problem for name, problem in CNNS.items()
}
