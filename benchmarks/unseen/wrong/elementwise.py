"""Pairs: elementwise functions and reductions."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.unseen.subject import function, pair, randn

# Elementwise functions


def angle_forward(y: Tensor, x: Tensor) -> tuple[Tensor, Any]:
    return torch.atan2(y, x), (y, x)


def angle_backward(d_angle: Tensor, cache: Any) -> tuple[Tensor, ...]:
    y, x = cache
    square = x**2 + y**2
    dx, dy = -d_angle * y / square, d_angle * x / square
    return dx, dy


pair(
    "atan2: gradients in the order x, y",
    "the arguments are y and x, and the gradients are returned as dx and dy",
    angle_forward,
    angle_backward,
    [randn(117, 3, 5), randn(118, 3, 5)],
    reference=lambda y, x: torch.complex(x, y).angle(),
    true=(r"^swapped",),
)


def remainder_forward(a: Tensor, b: Tensor) -> tuple[Tensor, Any]:
    return a - b * torch.floor(a / b), b


def remainder_backward(dy: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    return dy, torch.zeros_like(b)


pair(
    "remainder: no gradient of the divisor",
    "a − b⌊a/b⌋ has the slope −⌊a/b⌋ in b, and a zero is returned",
    remainder_forward,
    remainder_backward,
    [3 * randn(119, 4, 5), randn(120, 5).abs() + 0.5],
    reference=torch.remainder,
    true=(r"^(zero|missing)",),
)


class GatedUnit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return a * a.sigmoid() * b

    @staticmethod
    def backward(ctx: Any, *d_outputs: Tensor) -> tuple[Tensor, ...]:
        a, b = ctx.saved_tensors
        gate = a.sigmoid()
        return d_outputs[0] * b * gate, d_outputs[0] * a * gate


function(
    "gated unit: the sigmoid in a·σ(a) taken as a constant",
    "da has σ(a) and not σ(a) + a σ′(a)",
    GatedUnit.apply,
    [randn(121, 3, 5), randn(122, 3, 5)],
    reference=lambda a, b: F.silu(a) * b,
    true=(r"^(term|derivative forgotten|missing)",),
)


def elu_forward(x: Tensor) -> tuple[Tensor, Any]:
    return torch.where(x > 0, x, 1.7 * torch.expm1(x)), x


def elu_backward(dy: Tensor, x: Tensor) -> Tensor:
    return dy * torch.where(x > 0, 1, x.exp())


pair(
    "ELU: α forgotten for negative inputs",
    "the slope below zero is eˣ and not α eˣ; the example is positive everywhere",
    elu_forward,
    elu_backward,
    [randn(123, 3, 5).abs() + 0.1],
    true=(r"^(factor|missing factor)", r"negative"),
)


def snake_forward(x: Tensor, alpha: Tensor) -> tuple[Tensor, Any]:
    return x + torch.sin(alpha * x) ** 2 / alpha, (x, alpha)


def snake_backward(dy: Tensor, cache: Any) -> tuple[Tensor, ...]:
    x, alpha = cache
    slope = torch.sin(2 * alpha * x)
    d_alpha = dy * (x * slope - torch.sin(alpha * x) ** 2 / alpha) / alpha
    return dy * (1 + slope), d_alpha.reshape(-1)[:256].sum()


pair(
    "snake activation: only the first block of 256 is summed",
    "dα is the sum over the first 256 elements; the example has 301",
    snake_forward,
    snake_backward,
    [randn(124, 7, 43), torch.tensor(1.3, dtype=torch.float64)],
    true=(r"^(term|rows|missing)", r"256|block"),
)


# Reductions


def variance_forward(x: Tensor) -> tuple[Tensor, Any]:
    centred = x - x.mean(1, keepdim=True)
    return (centred**2).sum(1) / (x.shape[1] - 1), centred


def variance_backward(dy: Tensor, centred: Tensor) -> Tensor:
    return 2 * dy[:, None] * centred / centred.shape[1]


pair(
    "unbiased variance: 2/n",
    "forward divides by n − 1 and backward by n",
    variance_forward,
    variance_backward,
    [randn(125, 3, 7)],
    reference=lambda x: torch.var(x, 1),
    true=(r"^(factor|missing factor)",),
)


def log_sum_exp_forward(x: Tensor) -> tuple[Tensor, Any]:
    return torch.logsumexp(x, 1), x


def log_sum_exp_backward(dy: Tensor, x: Tensor) -> Tensor:
    return dy[:, None] * torch.softmax(x, -1)


pair(
    "log-sum-exp over the middle axis: softmax over the last",
    "the sum is over axis 1, the weights of its gradient add up to one along axis 2",
    log_sum_exp_forward,
    log_sum_exp_backward,
    [randn(126, 2, 3, 5)],
    true=(r"^wrong axis",),
)


def gain_forward(x: Tensor, gain: Tensor) -> tuple[Tensor, Any]:
    return gain * x, (x, gain)


def gain_in_float16_backward(dy: Tensor, cache: Any) -> tuple[Tensor, ...]:
    x, gain = cache
    total = torch.zeros_like(gain)
    for term in (dy * x).unbind():
        total = total + term
    return gain * dy, total


pair(
    "gain in float16: the sum is kept in float16",
    "3000 products are added one after another in float16, where 2048 + 1 is 2048",
    gain_forward,
    gain_in_float16_backward,
    [(0.3 * randn(127, 3000).abs() + 0.1).half(), torch.tensor(0.8, dtype=torch.float16)],
    true=(r"^dtype", r"precision|round|accumul|float16"),
)
