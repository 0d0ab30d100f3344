"""Pairs on NumPy arrays, and pairs with several outputs."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.unseen.subject import pair, randn

# NumPy


def stairs_forward(x: np.ndarray, gain: np.ndarray) -> tuple[np.ndarray, Any]:
    level = np.floor(x / 0.25) * 0.25
    return gain * level, (level, gain)


def stairs_backward(dy: np.ndarray, cache: Any) -> tuple[np.ndarray, ...]:
    level, gain = cache
    return gain * dy, (dy * level).sum(0)


pair(
    "NumPy: a staircase with the slope of its ramp",
    "forward rounds down to multiples of ¼, backward is that of the number itself",
    stairs_forward,
    stairs_backward,
    [randn(134, 4, 3).numpy(), randn(135, 3).numpy()],
    true=(r"^(kink|zero|term|ones)", r"jump|step|floor|round|constant"),
)


def row_mean_forward(x: np.ndarray) -> tuple[np.ndarray, Any]:
    return x.mean(1), x.shape


def row_mean_backward(dy: np.ndarray, shape: Any) -> np.ndarray:
    return np.zeros(shape) + dy / shape[1]


pair(
    "NumPy: mean of the rows of a square, without keepdims",
    "dy is broadcast along the rows of the square and not along its columns",
    row_mean_forward,
    row_mean_backward,
    [randn(136, 5, 5).numpy()],
    true=(r"^(wrong axis|transposed)",),
)


def convolve_forward(x: np.ndarray, k: np.ndarray) -> tuple[np.ndarray, Any]:
    return np.convolve(x, k), (x, k)


def convolve_backward(dy: np.ndarray, cache: Any) -> tuple[np.ndarray, ...]:
    x, k = cache
    return np.convolve(dy, k, "valid"), np.correlate(dy, x, "valid")


pair(
    "NumPy: convolution for correlation in dx",
    "dx is dy convolved with the kernel, which turns it round, and must be correlated with it",
    convolve_forward,
    convolve_backward,
    [randn(137, 7).numpy(), randn(142, 3).numpy()],
    true=(r"^(transposed|rows|swapped)", r"flip|revers|turn|order"),
)


# Several outputs


def moments_forward(x: Tensor) -> tuple[Tensor, Tensor, Any]:
    mean = x.mean(0)
    return mean, ((x - mean) ** 2).mean(0), x - mean


def moments_backward(d_mean: Tensor, d_var: Tensor, centred: Tensor) -> Tensor:
    return (d_mean + d_var * centred) / len(centred)


pair(
    "mean and variance: 2 of the square forgotten",
    "the variance's part of dx is (x − μ)/n and not 2 (x − μ)/n",
    moments_forward,
    moments_backward,
    [randn(139, 5, 3)],
    outputs=2,
    true=(r"^(factor|missing factor|term)",),
)


def polar_forward(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Any]:
    r = torch.sqrt(x**2 + y**2)
    return r, torch.atan2(y, x), (x, y, r)


def polar_backward(dr: Tensor, d_angle: Tensor, cache: Any) -> tuple[Tensor, ...]:
    x, y, r = cache
    return (dr * x - d_angle * y) / r, (dr * y + d_angle * x) / r


def polar(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    z = torch.complex(x, y)
    return z.abs(), z.angle()


pair(
    "polar coordinates: r for r²",
    "the angle's part of both gradients is divided by r and not by r²",
    polar_forward,
    polar_backward,
    [randn(140, 3, 4), randn(141, 3, 4)],
    reference=polar,
    outputs=2,
    true=(r"^(factor|missing factor|term)",),
)
