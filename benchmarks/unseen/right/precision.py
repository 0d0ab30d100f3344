"""Pairs in other precision, and of other scales."""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.unseen.subject import pair, randn


def siren_forward(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    angle = 30 * (x @ weight + bias)
    return angle.sin(), (x, weight, angle)


def siren_backward(d: Tensor, cache: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    x, weight, angle = cache
    da = 30 * d * angle.cos()
    return da @ weight.T, x.T @ da, da.sum(0)


pair(
    "sine layer in float32",
    "angles of about 60, whose rounding in float32 leaves the cosine 1e-5: right within 1e-4 relative, and no closer",
    siren_forward,
    siren_backward,
    lambda: [
        randn(21, 4, 9, dtype=torch.float32),
        0.7 * randn(22, 9, 3, dtype=torch.float32),
        randn(23, 3, dtype=torch.float32),
    ],
    reference=lambda x, weight, bias: torch.sin(30 * F.linear(x, weight.T, bias)),
)


def gelu_forward(x: Tensor) -> tuple[Tensor, Tensor]:
    wide = x.float()
    t = (math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)).tanh()
    return (0.5 * wide * (1 + t)).to(x.dtype), x


def gelu_backward(d: Tensor, x: Tensor) -> Tensor:
    wide = x.float()
    t = (math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)).tanh()
    slope = 0.5 * (1 + t) + 0.5 * wide * (1 - t * t) * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * wide**2)
    return (d.float() * slope).to(x.dtype)


pair(
    "gelu in bfloat16, float32 inside",
    "input, output and gradient have 8 bits, so that the gradient is right within 2^-8 relative; inside it is float32",
    gelu_forward,
    gelu_backward,
    lambda: [2 * randn(24, 3, 7, dtype=torch.bfloat16)],
    reference=lambda x: F.gelu(x, approximate="tanh"),
)


def rms_norm_forward(x: Tensor, gain: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    wide = x.float()
    inverse = (wide.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    return (wide * inverse * gain.float()).to(x.dtype), (x, gain, inverse)


def rms_norm_backward(d: Tensor, cache: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    x, gain, inverse = cache
    normal, wide = x.float() * inverse, d.float()
    dn = wide * gain.float()
    dx = (dn - normal * (dn * normal).mean(-1, keepdim=True)) * inverse
    return dx.to(x.dtype), (wide * normal).sum(0).to(gain.dtype)


pair(
    "rms norm in float16, float32 inside",
    "squares of 400 overflow in float16, and x has gradients of 1e-3: right within 1e-3 relative, float16's last bit",
    rms_norm_forward,
    rms_norm_backward,
    lambda: [400 * randn(25, 3, 6, dtype=torch.float16), randn(26, 6, dtype=torch.float16)],
    reference=lambda x, gain: F.rms_norm(x.float(), gain.shape, gain.float(), eps=1e-6).to(x.dtype),
)


def shuffled_forward(x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    top = x.amax(1, keepdim=True)
    e = (x - top).exp()
    total = e[:, torch.randperm(x.shape[1])].sum(1)
    return top[:, 0] + total.log(), (e, total)


def shuffled_backward(d: Tensor, cache: tuple[Tensor, Tensor]) -> Tensor:
    e, total = cache
    return (d / total)[:, None] * e


pair(
    "log of a sum in random order",
    "float32, added up in another order at every call, so gradients differ in the last bit: right within 1e-6 relative",
    shuffled_forward,
    shuffled_backward,
    lambda: [randn(27, 2, 301, dtype=torch.float32)],
    reference=lambda x: torch.logsumexp(x, 1),
)


def numpy_lookup_forward(x: np.ndarray, weight: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, tuple[Any, ...]]:
    y = np.tanh(x @ weight)
    return y[ids], (x, weight, ids, y)


def numpy_lookup_backward(d: np.ndarray, cache: tuple[Any, ...]) -> tuple[np.ndarray, np.ndarray]:
    x, weight, ids, y = cache
    dy = np.zeros_like(y)
    np.add.at(dy, ids, d)
    dz = dy * (1 - y * y)
    return dz @ weight.T, x.T @ dz


pair(
    "NumPy: rows of a layer by repeated ids",
    "arrays instead of tensors, integers among them; row 1 is taken three times and row 3 never",
    numpy_lookup_forward,
    numpy_lookup_backward,
    lambda: [randn(28, 4, 3).numpy(), randn(29, 3, 2).numpy(), np.array([1, 0, 1, 2, 1])],
)
