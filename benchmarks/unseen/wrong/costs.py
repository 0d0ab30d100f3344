"""Pairs: costs."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.unseen.subject import pair, randn


def contrast_forward(q: Tensor, k: Tensor) -> tuple[Tensor, Any]:
    logits = q @ k.T / 0.5
    cost = (torch.logsumexp(logits, 1) - logits.diagonal()).mean()
    return cost, (q, k, logits)


def contrast_backward(d_cost: Tensor, cache: Any) -> tuple[Tensor, ...]:
    q, k, logits = cache
    error = d_cost * (torch.softmax(logits, 1) - torch.eye(len(q), dtype=q.dtype)) / len(q) / 0.5
    return error @ k, error @ q


pair(
    "contrastive cost: the error of the keys not transposed",
    "the square matrix of errors must be transposed for the keys' gradient",
    contrast_forward,
    contrast_backward,
    [randn(110, 4, 3), randn(111, 4, 3)],
    reference=lambda q, k: F.cross_entropy(2 * torch.einsum("id,jd->ij", q, k), torch.arange(len(q))),
    true=(r"^(transposed|wrong axis)",),
)


def weighted_bce_forward(x: Tensor, y: Tensor) -> tuple[Tensor, Any]:
    cost = -2.5 * (y * F.logsigmoid(x) + (1 - y) * F.logsigmoid(-x)).mean()
    return cost, (x, y)


def weighted_bce_backward(d_cost: Tensor, cache: Any) -> Tensor:
    x, y = cache
    return d_cost * 2.5 * (x.sigmoid() - y) / x.numel()


pair(
    "weighted binary cross-entropy: negatives weighted too, in forward",
    "the weight of the positive class multiplies both terms; backward is the right derivative of that",
    weighted_bce_forward,
    weighted_bce_backward,
    [randn(112, 4, 3), (randn(113, 4, 3) > 0).double()],
    reference=lambda x, y: F.binary_cross_entropy_with_logits(x, y, pos_weight=torch.full_like(x, 2.5)),
    not_differentiable=("y",),
    true=(r"^(output|forward|reference)", r"forward"),
)


def poisson_forward(x: Tensor, y: Tensor) -> tuple[Tensor, Any]:
    return (x.exp() - y * x).sum(1).mean(), (x, y)


def poisson_backward(d_cost: Tensor, cache: Any) -> Tensor:
    x, y = cache
    return d_cost * (x.exp() - y)


pair(
    "Poisson cost: 1/B forgotten",
    "the cost is the mean over the examples, its gradient that of their sum",
    poisson_forward,
    poisson_backward,
    [randn(114, 4, 3), randn(115, 4, 3).abs().mul(3).floor()],
    not_differentiable=("y",),
    true=(r"^(batch factor|factor)",),
)


def variation_forward(x: Tensor) -> tuple[Tensor, Any]:
    step = x[:, 1:] - x[:, :-1]
    return step.abs().sum(1), step


def variation_backward(dy: Tensor, step: Tensor) -> Tensor:
    slope = torch.where(step.abs() < 1e-3, 0, step.sign()) * dy[:, None]  # a kink: any slope will do
    return F.pad(slope, (1, 0)) - F.pad(slope, (0, 1))


def nearly_level(seed: int) -> Tensor:
    x = randn(seed, 3, 6)
    x[1, 3] = x[1, 2] + 4e-4
    return x


pair(
    "total variation: all steps below 1e-3 taken for kinks",
    "a step of 4e-4 has a slope of 1, and gets 0 with the excuse of the kink at 0",
    variation_forward,
    variation_backward,
    [nearly_level(116)],
    true=(r"^(zero|term|rows|missing)", r"small|near"),
)
