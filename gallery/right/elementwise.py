"""Elementwise: the value, its derivative, and where its arguments come from."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from gallery.right.base import Draw, RightLayer, family


def elementwise(name: str, value: Callable, derivative: Callable, values: Callable[..., Tensor] = Draw.normal) -> None:
    @family
    def make(draw: Draw) -> RightLayer:
        def forward(x):
            return value(x), x

        def backward(da, x):
            return da * derivative(x)

        return RightLayer(name, forward, backward, (values(draw, *draw.shape(draw.integer(1, 3))),))


def off(*kinks: float) -> Callable[..., Tensor]:
    return lambda draw, *shape: draw.off(kinks, *shape)


def softplus(x):
    return torch.logaddexp(x, torch.zeros_like(x))


def normal_density(x):
    return torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def gelu_tanh(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gelu_tanh_derivative(x):
    t = torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x)


def mish_derivative(x):
    t = torch.tanh(softplus(x))
    return t + x * (1 - t * t) * torch.sigmoid(x)


elementwise("relu", torch.relu, lambda x: (x > 0).to(x.dtype), off(0))
elementwise("relu by clamp", lambda x: x.clamp(min=0), lambda x: (x > 0).to(x.dtype), off(0))
elementwise("abs", torch.abs, torch.sign, off(0))
elementwise("clamp", lambda x: x.clamp(-1, 0.5), lambda x: ((x > -1) & (x < 0.5)).to(x.dtype), off(-1, 0.5))
elementwise(
    "leaky relu", lambda x: F.leaky_relu(x, 0.2), lambda x: torch.where(x > 0, 1, torch.full_like(x, 0.2)), off(0)
)
elementwise("elu", lambda x: torch.where(x > 0, x, torch.expm1(x)), lambda x: torch.exp(x.clamp(max=0)), off(0))
elementwise(
    "hard swish",
    lambda x: x * (x + 3).clamp(0, 6) / 6,
    lambda x: torch.where(x <= -3, 0.0, torch.where(x >= 3, 1.0, (2 * x + 3) / 6)),
    off(-3, 3),
)
elementwise("sigmoid", torch.sigmoid, lambda x: torch.sigmoid(x) * torch.sigmoid(-x))
elementwise("tanh", torch.tanh, lambda x: 1 - torch.tanh(x) ** 2)
elementwise("swish", lambda x: x * torch.sigmoid(x), lambda x: torch.sigmoid(x) * (1 + x * torch.sigmoid(-x)))
elementwise("softplus", softplus, torch.sigmoid)
elementwise("softplus by max", lambda x: x.clamp(min=0) + torch.log1p(torch.exp(-x.abs())), torch.sigmoid)
elementwise("log sigmoid", lambda x: -softplus(-x), lambda x: torch.sigmoid(-x))
elementwise(
    "gelu",
    lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    lambda x: 0.5 * (1 + torch.erf(x / math.sqrt(2))) + x * normal_density(x),
)
elementwise("gelu by tanh", gelu_tanh, gelu_tanh_derivative)
elementwise("mish", lambda x: x * torch.tanh(softplus(x)), mish_derivative)
elementwise("softsign", lambda x: x / (1 + x.abs()), lambda x: 1 / (1 + x.abs()) ** 2)
elementwise("erf", torch.erf, lambda x: 2 / math.sqrt(math.pi) * torch.exp(-x * x))
elementwise("exp", torch.exp, torch.exp)
elementwise("expm1", torch.expm1, torch.exp)
elementwise("log", torch.log, torch.reciprocal, Draw.positive)
elementwise("log1p of x²", lambda x: torch.log1p(x * x), lambda x: 2 * x / (1 + x * x))
elementwise("sqrt", torch.sqrt, lambda x: 0.5 / torch.sqrt(x), Draw.positive)
elementwise("rsqrt", torch.rsqrt, lambda x: -0.5 * x**-1.5, Draw.positive)
elementwise("reciprocal", torch.reciprocal, lambda x: -1 / (x * x), Draw.positive)
elementwise("square", lambda x: x * x, lambda x: 2 * x)
elementwise("cube", lambda x: x**3, lambda x: 3 * x**2)
elementwise("x to the 1.5", lambda x: x**1.5, lambda x: 1.5 * x**0.5, Draw.positive)
elementwise("sin", torch.sin, torch.cos)
elementwise("atan", torch.atan, lambda x: 1 / (1 + x * x))
elementwise("asinh", torch.asinh, lambda x: torch.rsqrt(1 + x * x))
elementwise("cosh", torch.cosh, torch.sinh)
elementwise("3 − x", lambda x: 3 - x, lambda x: -torch.ones_like(x))
