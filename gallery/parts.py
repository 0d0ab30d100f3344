"""Wrong activations and costs, which `verify.py` and the lessons have to notice. No entries of the gallery's page."""

import torch
from torch import Tensor

from manual_backprop.layers.activations import ACTIVATIONS, Activation
from manual_backprop.losses import Quadratic, SigmoidCrossEntropy, SquaredError


def sigmoid_of_slope(slope: float) -> Activation:
    """σ forward; backward takes σ′ for this number."""
    return Activation(ACTIVATIONS["sigmoid"].value, lambda z, a: torch.full_like(a, slope))


def gelu_by_tanh() -> Activation:
    """The tanh approximation, right in itself, where the exact GELU was asked for."""

    def inner(z: Tensor) -> Tensor:
        return (2 / torch.pi) ** 0.5 * (z + 0.044715 * z**3)

    def derivative(z: Tensor, a: Tensor) -> Tensor:
        t = inner(z).tanh()
        return 0.5 * (1 + t) + 0.5 * z * (1 - t * t) * (2 / torch.pi) ** 0.5 * (1 + 3 * 0.044715 * z**2)

    return Activation(lambda z: 0.5 * z * (1 + inner(z).tanh()), derivative)


class TwiceTheGradient(SquaredError):
    """The cost itself is right."""

    def backward(self, dC, cache):
        return 2 * super().backward(dC, cache)


class SumOfExamples(Quadratic):
    """The gradient of a sum over the examples, where the cost is their mean."""

    def backward(self, dC, cache):
        return cache[0] * dC


class SigmaPrimeLeftIn(SigmoidCrossEntropy):
    """σ′, which this cost cancels, is there again."""

    def backward(self, dC, cache):
        z, Y, count = cache
        a = torch.sigmoid(z)
        return (a - Y) * a * (1 - a) * (dC / count)
