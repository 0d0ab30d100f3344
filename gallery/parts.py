"""Wrong activations, costs, perceptrons and twins, which `verify.py`, the lessons and lock step have to notice, or not.

No entries of the gallery's page.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from manual_backprop.layers import linear
from manual_backprop.layers.activations import ACTIVATIONS, Activation
from manual_backprop.losses import Quadratic, SigmoidCrossEntropy, SquaredError
from manual_backprop.models.mlp import MLP


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


class Leaning(MLP):
    """Runs a backward operator of torch's."""

    def backward(self, p, d_output, g, tape):
        _, _, a = tape.caches["layer1"]
        torch.ops.aten.sigmoid_backward(d_output, a)
        return super().backward(p, d_output, g, tape)


class Cheating(MLP):
    """Asks autograd for a gradient."""

    def backward(self, p, d_output, g, tape):
        a_before, _, _ = tape.take("layer1")
        W = p["layer1.weight"].clone().requires_grad_()
        (g["layer1.weight"],) = torch.autograd.grad((a_before @ W.T * d_output).sum(), W)


@dataclass(frozen=True)
class Nudged(MLP):
    """Right, but the first layer's z is off by less than any rounding."""

    def forward(self, p, x, tape):
        return super().forward({**p, "layer1.bias": p["layer1.bias"] + 1e-18}, x, tape)


class NamedOutput:
    """A model with a call that has the name of the model's own output."""

    def forward(self, p, x, tape):
        return tape.forward(linear, "output", x, p["output.weight"], p["output.bias"])

    def backward(self, p, d_output, g, tape):
        _, g["output.weight"], g["output.bias"] = tape.backward(linear, "output", d_output)


class Unobserved(nn.Sequential):
    """A twin that says of none of its modules which call it is."""

    def __init__(self, sizes, activations, dropout=0.0):
        super().__init__()


class OtherNames(Unobserved):
    """A twin whose parameters have other names than the model's."""

    def __init__(self, sizes, activations, dropout=0.0):
        super().__init__(sizes, activations)
        self.other = nn.Linear(3, 2)

    def observed(self):
        return {}
