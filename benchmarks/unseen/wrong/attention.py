"""Pairs: softmax, log-softmax and attention."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.unseen.subject import function, pair, randn


def tempered_forward(x: Tensor, tau: Tensor) -> tuple[Tensor, Any]:
    p = torch.softmax(x / tau, 1)
    return p, (x, tau, p)


def tempered_backward(dp: Tensor, cache: Any) -> tuple[Tensor, ...]:
    x, tau, p = cache
    dz = p * (dp - (p * dp).sum(1, keepdim=True))
    return dz * tau, -(dz * x).sum() / tau**2


pair(
    "softmax with a temperature: dx times τ",
    "dx is multiplied by the temperature, not divided by it",
    tempered_forward,
    tempered_backward,
    [randn(19, 4, 5), torch.tensor(0.7, dtype=torch.float64)],
    reference=lambda x, tau: (x / tau - torch.logsumexp(x / tau, 1, keepdim=True)).exp(),
    true=(r"^(factor|missing factor)",),
)


def log_softmax_forward(x: Tensor) -> tuple[Tensor, Any]:
    y = x - torch.logsumexp(x, 1, keepdim=True)
    return y, y


def log_softmax_backward(dy: Tensor, y: Tensor) -> Tensor:
    return dy - y.exp() * dy.sum()


pair(
    "log-softmax: the errors of all rows summed",
    "Σ dy is over the whole batch and not over each row, which is the same only for a batch of one",
    log_softmax_forward,
    log_softmax_backward,
    [randn(20, 4, 5)],
    true=(r"^(wrong axis|term)",),
)


def attention_forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Any]:
    p = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1)
    return p @ v, (q, k, v, p)


def attention_scaled_twice_backward(dy: Tensor, cache: Any) -> tuple[Tensor, ...]:
    q, k, v, p = cache
    scale = q.shape[-1] ** -0.5
    dp = dy @ v.mT
    ds = scale * p * (dp - (p * dp).sum(-1, keepdim=True))
    return ds @ k, scale * ds.mT @ q, p.mT @ dy


pair(
    "attention: scale twice in dk",
    "1/√d is in the error of the scores already, and dk gets it once more",
    attention_forward,
    attention_scaled_twice_backward,
    [randn(21, 2, 3, 4), randn(22, 2, 5, 4), randn(23, 2, 5, 6)],
    reference=F.scaled_dot_product_attention,
    true=(r"^(factor|missing factor)",),
)


def attention_by_twos_backward(dy: Tensor, cache: Any) -> tuple[Tensor, ...]:
    q, k, v, p = cache
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for first in range(0, len(q) - 1, 2):
        two = slice(first, first + 2)
        dp = dy[two] @ v.T
        ds = p[two] * (dp - (p[two] * dp).sum(1, keepdim=True)) / q.shape[1] ** 0.5
        dq[two] = ds @ k
        dk += ds.T @ q[two]
        dv += p[two].T @ dy[two]
    return dq, dk, dv


pair(
    "attention in tiles of two queries: the odd query skipped",
    "the loop over tiles stops one query short of an odd length, which then has no gradient and gives none",
    attention_forward,
    attention_by_twos_backward,
    [randn(24, 5, 4), randn(25, 7, 4), randn(26, 7, 3)],
    true=(r"^(rows|zero|missing|term)", r"\blast\b"),
)


def linear_attention_forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Any]:
    fq, fk = q.exp(), k.exp()
    S = fk.T @ v
    n = fq @ fk.sum(0)
    return fq @ S / n[:, None], (fq, fk, v, S, n)


def linear_attention_backward(dy: Tensor, cache: Any) -> tuple[Tensor, ...]:
    fq, fk, v, S, n = cache
    dy = dy / n[:, None]
    dS = fq.T @ dy
    return dy @ S.T * fq, v @ dS.T * fk, fk @ dS


def linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.exp(q[:, None] + k).sum(-1)
    return (weights / weights.sum(1, keepdim=True)) @ v


pair(
    "linear attention: the normalizer taken as a constant",
    "φ(q)·Σφ(k) depends on q and k, and its path is left out of dq and dk",
    linear_attention_forward,
    linear_attention_backward,
    [randn(27, 3, 4), randn(28, 5, 4), randn(29, 5, 2)],
    reference=linear_attention,
    true=(r"^(term|missing|derivative forgotten)",),
)


def rotate(x: Tensor) -> Tensor:
    half = x.shape[1] // 2
    angle = torch.arange(len(x), dtype=x.dtype)[:, None] * 0.3 ** torch.arange(half, dtype=x.dtype)
    a, b = x[:, :half], x[:, half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], 1)


class Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return rotate(x)

    @staticmethod
    def backward(ctx: Any, *d_outputs: Tensor) -> Tensor:
        return rotate(d_outputs[0])


function(
    "rotary positions: rotated forward once more",
    "the gradient is rotated by the angle and not back, right at position 0 alone",
    Rotary.apply,
    [randn(30, 5, 6)],
    true=(r"^(sign|transposed|term)",),
)


def biased_attention_forward(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor, Any]:
    p = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5 + bias, -1)
    return p @ v, (q, k, v, p)


def biased_attention_backward(dy: Tensor, cache: Any) -> tuple[Tensor, ...]:
    q, k, v, p = cache
    dp = dy @ v.mT
    ds = p * (dp - (p * dp).sum(-1, keepdim=True))
    scaled = ds / q.shape[-1] ** 0.5
    return scaled @ k, scaled.mT @ q, p.mT @ dy, ds.mean(0)


pair(
    "attention with a bias of the scores: averaged over the batch",
    "the gradient of the bias is the mean over the examples, not their sum",
    biased_attention_forward,
    biased_attention_backward,
    [randn(31, 3, 2, 4), randn(32, 3, 5, 4), randn(33, 3, 5, 6), randn(34, 2, 5)],
    reference=lambda q, k, v, bias: F.scaled_dot_product_attention(q, k, v, attn_mask=bias),
    true=(r"^(batch factor|factor)",),
)
