"""Activation functions: each value with its derivative beside it.

    a = σ(z)                         forward, elementwise

    AC1  dz = da ⊙ σ′(z)             σ′ is the last factor of BP1 and BP2

A derivative is given z and a = σ(z), because several are shorter in terms of a; those that need nothing else are in
OF_A, and their layer does not remember z. All are safe for any finite z. At a kink (relu and leaky_relu at 0) the
derivative is the one from the left, as torch has it. Sources: Nielsen, chapters 2 and 3; LeCun et al. 1998 (scaled
tanh); Maas et al. 2013 (leaky relu); Dugas et al. 2000 (softplus); Hendrycks and Gimpel 2016 (gelu, silu).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import pi, sqrt
from typing import Any, ClassVar

import torch
from torch import Tensor

# 1 as a tensor of each format: 1 − a takes a third of the time of a Python 1, which a small network's step notices.
ONE = {
    dtype: torch.ones((), dtype=dtype, device="cpu")
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)
}

Cache = tuple[Tensor | None, Tensor]


@dataclass(frozen=True)
class Activation:
    """A value and its derivative, and from these two the layer: `forward(z)`, `backward(da, cache)`."""

    value: Callable[[Tensor], Tensor]  # σ(z)
    derivative: Callable[[Any, Tensor], Tensor]  # σ′ from z and a

    EQUATIONS: ClassVar = ("AC1",)

    @property
    def name(self) -> str:
        return self.value.__name__

    def forward(self, z: Tensor) -> tuple[Tensor, Cache]:
        a = self.value(z)
        return a, (None if self.derivative in OF_A else z, a)

    def backward(self, da: Tensor, cache: Cache) -> Tensor:
        z, a = cache
        return self.derivative(z, a).mul_(da)  # AC1, into σ′, which is nobody else's


def sigmoid(z: Tensor) -> Tensor:
    """σ(z) = 1 / (1 + e⁻ᶻ)"""
    return torch.sigmoid(z)


def sigmoid_derivative(z: Tensor, a: Tensor) -> Tensor:
    """σ′(z) = σ(z) (1 − σ(z))"""
    return a * (ONE[a.dtype] - a)


def tanh(z: Tensor) -> Tensor:
    """tanh(z) = (eᶻ − e⁻ᶻ) / (eᶻ + e⁻ᶻ)"""
    return torch.tanh(z)


def tanh_derivative(z: Tensor, a: Tensor) -> Tensor:
    """tanh′(z) = 1 − tanh²(z)"""
    return ONE[a.dtype] - a * a


def scaled_tanh(z: Tensor) -> Tensor:
    """1.7159 tanh(⅔ z), which is about z between −1 and 1"""
    return 1.7159 * torch.tanh(2 / 3 * z)


def scaled_tanh_derivative(z: Tensor, a: Tensor) -> Tensor:
    """1.7159 · ⅔ (1 − tanh²(⅔ z))"""
    t = a / 1.7159
    return t.square_().sub_(1).mul_(-1.7159 * 2 / 3)  # in place: this is the largest tensor of LeNet-5


def relu(z: Tensor) -> Tensor:
    """relu(z) = max(z, 0)"""
    return torch.relu(z)


def relu_derivative(z: Tensor, a: Tensor) -> Tensor:
    """relu′(z) = 1 if z > 0 else 0, which is the sign of a"""
    return a.sign()


LEAK = 0.01


def leaky_relu(z: Tensor) -> Tensor:
    """z if z > 0 else 0.01 z"""
    return torch.where(z > 0, z, LEAK * z)


def leaky_relu_derivative(z: Tensor, a: Tensor) -> Tensor:
    """1 if z > 0 else 0.01"""
    return torch.where(z > 0, torch.ones_like(z), LEAK)


def softplus(z: Tensor) -> Tensor:
    """ln(1 + eᶻ) = ln(e⁰ + eᶻ), by the logarithm of a sum of exponentials that cannot overflow"""
    return torch.logaddexp(torch.zeros_like(z), z)


def softplus_derivative(z: Tensor, a: Tensor) -> Tensor:
    """softplus′(z) = σ(z)"""
    return torch.sigmoid(z)


def gelu(z: Tensor) -> Tensor:
    """z Φ(z), where Φ is the standard normal distribution function, ½ (1 + erf(z / √2)) = ½ erfc(−z / √2)"""
    return z * normal_cdf(z)


def gelu_derivative(z: Tensor, a: Tensor) -> Tensor:
    """Φ(z) + z φ(z), where φ(z) = e^(−z²/2) / √(2π)"""
    return normal_cdf(z) + z * torch.exp(-0.5 * z * z) / sqrt(2 * pi)


def normal_cdf(z: Tensor) -> Tensor:
    """Φ(z). With erfc the left tail keeps its relative precision; 1 + erf would cancel there."""
    return 0.5 * torch.erfc(-z / sqrt(2))


def silu(z: Tensor) -> Tensor:
    """z σ(z), where σ is the sigmoid"""
    return z * torch.sigmoid(z)


def silu_derivative(z: Tensor, a: Tensor) -> Tensor:
    """σ(z) + z σ(z) (1 − σ(z))"""
    s = torch.sigmoid(z)
    return s + a * (1 - s)


SATURATED = 30.0  # σ(u) of this z, and of any beyond it, is 0 or 1 in every format


def gelu_tanh(z: Tensor) -> Tensor:
    """½ z (1 + tanh(u/2)) = z σ(u), u = √(8/π) (z + 0.044715 z³); the sigmoid keeps the left tail's precision"""
    return z * torch.sigmoid(gelu_inner(z))


def gelu_tanh_derivative(z: Tensor, a: Tensor) -> Tensor:
    """σ(u) + z σ(u) (1 − σ(u)) u′, u′ = √(8/π) (1 + 3 · 0.044715 z²)"""
    s = torch.sigmoid(gelu_inner(z))
    near = z.clamp(-SATURATED, SATURATED)
    return s + a * (1 - s) * sqrt(8 / pi) * (1 + 3 * 0.044715 * near * near)


def gelu_inner(z: Tensor) -> Tensor:
    """u; where the cube overflows, σ(u) is 0 or 1 as before"""
    return sqrt(8 / pi) * (z + 0.044715 * z * z * z)


def identity(z: Tensor) -> Tensor:
    """a = z"""
    return z


def identity_derivative(z: Tensor, a: Tensor) -> Tensor:
    """1"""
    return torch.ones_like(z)


ACTIVATIONS = {
    "sigmoid": Activation(sigmoid, sigmoid_derivative),
    "tanh": Activation(tanh, tanh_derivative),
    "relu": Activation(relu, relu_derivative),
    "leaky_relu": Activation(leaky_relu, leaky_relu_derivative),
    "softplus": Activation(softplus, softplus_derivative),
    "gelu": Activation(gelu, gelu_derivative),
    "silu": Activation(silu, silu_derivative),
    "gelu_tanh": Activation(gelu_tanh, gelu_tanh_derivative),
    "identity": Activation(identity, identity_derivative),
    "scaled_tanh": Activation(scaled_tanh, scaled_tanh_derivative),
}


OF_A = (sigmoid_derivative, tanh_derivative, scaled_tanh_derivative, relu_derivative)


def examples(generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Iterator[tuple[Activation, tuple]]:
    """Pairs of a layer and its arguments: one z of odd sizes per activation, none nearer than 0.05 to a kink."""
    for activation in ACTIVATIONS.values():
        z = 2 * torch.randn(7, 5, generator=generator, dtype=torch.float64)
        yield activation, ((z + 0.05 * z.sign()).to(dtype),)
