"""Pairs at kinks."""

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.unseen.subject import pair, randn, rows


def relu_forward(x: Tensor) -> tuple[Tensor, Tensor]:
    return x * (x >= 0), x


def relu_backward(d: Tensor, x: Tensor) -> Tensor:
    return d * (x >= 0)


pair(
    "relu, one at zero",
    "exact zeros in the example, where every number from 0 to 1 is a subgradient: this backward says 1, torch.relu 0",
    relu_forward,
    relu_backward,
    lambda: [rows([0, 1.5, -0.5], [0, 0, 2], [-1, 0, 0.25], [0.75, -2, 0])],
    reference=torch.relu,
)


def row_maximum_forward(x: Tensor) -> tuple[Tensor, Tensor]:
    y = x.amax(1)
    return y, x == y[:, None]


def row_maximum_backward(d: Tensor, hit: Tensor) -> Tensor:
    return d[:, None] * hit / hit.sum(1, keepdim=True)


pair(
    "maximum of a row, shared among ties",
    "three of four rows have ties, among which the gradient is divided equally",
    row_maximum_forward,
    row_maximum_backward,
    lambda: [rows([1, 2, 2, 0, 2], [0, 0, 0, 0, 0], [-1, 3, 0.5, 2, 1], [4, 1, 1, 4, 0])],
    reference=lambda x: torch.amax(x, 1),
)


def median_forward(x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    y, where = x.median(dim=1)
    return y, (where, x)


def median_backward(d: Tensor, cache: tuple[Tensor, Tensor]) -> Tensor:
    where, x = cache
    return torch.zeros_like(x).scatter(1, where[:, None], d[:, None])


pair(
    "median with close neighbours",
    "middle values are 1e-7 apart, so that an ordinary step of a difference changes which of them is the median",
    median_forward,
    median_backward,
    lambda: [rows([0.3, 0.3 + 1e-7, -2, 1.5, 2, -1], [0, 1, 2, 3, 2 - 1e-7, 5], [1, 1 - 1e-7, 1 + 1e-7, 4, -3, 0])],
    reference=lambda x: x.sort(dim=1).values[:, (x.shape[1] - 1) // 2],
)


def hinge_forward(scores: Tensor, target: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    margin = 1 + scores - scores.gather(1, target[:, None])
    others = torch.arange(scores.shape[1], device=scores.device) != target[:, None]
    loss = (margin.clamp(min=0) * others).sum() / scores.numel()
    return loss, ((margin > 0) & others, target, scores)


def hinge_backward(d: Tensor, cache: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    active, target, scores = cache
    pushed = active.to(scores.dtype)
    pulled = torch.zeros_like(scores).scatter(1, target[:, None], pushed.sum(1, keepdim=True))
    return d * (pushed - pulled) / scores.numel()


pair(
    "hinge loss with margins of exactly zero",
    "the scores are multiples of a half, so that several margins lie on the kink; the loss is 0-d, the target integer",
    hinge_forward,
    hinge_backward,
    lambda: [
        rows([0, 1, 0.5, -1], [2, 1, 0, 3], [0.5, 0.5, 1.5, 0.5], [1, 0, 2, 0], [-0.5, 0, 0, 1]),
        torch.tensor([1, 3, 2, 2, 0]),
    ],
    reference=F.multi_margin_loss,
)


def huber_forward(x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    r = x - target
    return torch.where(r.abs() <= 1, r * r / 2, r.abs() - 0.5).mean(), r


def huber_backward(d: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    dx = d * r.clamp(-1, 1) / r.numel()
    return dx, -dx


pair(
    "huber loss with residuals of exactly one",
    "the second derivative jumps at residuals of ±1, which are in the example, and of 0 the gradient is exactly zero",
    huber_forward,
    huber_backward,
    lambda: [rows([1, -1, 0, 2.5, 0.5], [3, 0, -0.25, 1, 1]), rows([0, 0, 0, 0, 0], [1, 1, -0.25, 2, -4])],
    reference=lambda x, target: F.huber_loss(x, target, delta=1.0),
)


def minimum_forward(a: Tensor, b: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    return torch.minimum(a, b), (a, b)


def minimum_backward(d: Tensor, cache: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    a, b = cache
    share = (a < b).to(d.dtype) + 0.5 * (a == b)
    return d * share, d * (1 - share)


pair(
    "smaller of two equal arguments",
    "the two arguments are the same tensor, so that every element is a tie and each gets a half",
    minimum_forward,
    minimum_backward,
    lambda: [randn(1, 3, 5)] * 2,
    reference=lambda a, b: (a + b - (a - b).abs()) / 2,
)


def three_largest_forward(x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    y, where = x.topk(3, dim=1)
    return y, (where, x)


def three_largest_backward(d: Tensor, cache: tuple[Tensor, Tensor]) -> Tensor:
    where, x = cache
    return torch.zeros_like(x).scatter(1, where, d)


pair(
    "three largest with ties at the third",
    "which of the equal elements is third is arbitrary, and the other ones get nothing",
    three_largest_forward,
    three_largest_backward,
    lambda: [rows([5, 1, 1, 1, 3, 0], [2, 2, 2, 2, 2, 2], [0.5, -1, 4, 0.5, 0.5, 7])],
)


def interpolation_forward(table: Tensor, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    low = x.detach().floor().long().clamp(max=len(table) - 2).clamp(min=0)
    high = (low + 1).clamp(max=len(table) - 1)
    part = x - low
    return table[low] * (1 - part) + table[high] * part, (table, low, high, part)


def interpolation_backward(d: Tensor, cache: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    table, low, high, part = cache
    d_table = torch.zeros_like(table).index_add(0, low, d * (1 - part)).index_add(0, high, d * part)
    return d_table, d * (table[high] - table[low])


pair(
    "interpolation in a table, at its grid points",
    "all but one position are grid points, where the slope is that of the right neighbour; two positions are the same",
    interpolation_forward,
    interpolation_backward,
    lambda: [randn(2, 6), torch.tensor([0, 3, 1, 4.5, 3, 5, 2], dtype=torch.float64)],
)


def norm_forward(x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    y = x.square().sum(1).sqrt()
    return y, (x, y)


def norm_backward(d: Tensor, cache: tuple[Tensor, Tensor]) -> Tensor:
    x, y = cache
    return d[:, None] * torch.where(y > 0, 1 / y, 0)[:, None] * x


pair(
    "norm of a row of zeros",
    "autograd through this very forward gives nan at the second row, the backward the subgradient zero",
    norm_forward,
    norm_backward,
    lambda: [rows([3, -4, 0], [0, 0, 0], [1e-6, 2e-6, -2e-6], [0, 0, -5])],
    reference=lambda x: torch.linalg.vector_norm(x, dim=1),
)
