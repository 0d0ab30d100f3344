"""Pairs: recursions and transforms."""

import itertools
import math
from typing import Any

import torch
from torch import Tensor

from benchmarks.unseen.subject import pair, rand, randn


def scan_forward(a: Tensor, b: Tensor, start: Tensor) -> Any:
    states = [start]
    for a_t, b_t in zip(a, b, strict=True):
        states.append(a_t * states[-1] + b_t)
    h = torch.stack(states)
    return h[1:].clone(), (a, h)


def scan_backward(dh: Tensor, cache: Any) -> Any:
    a, h = cache
    g = dh.clone()
    for t in reversed(range(len(a) - 1)):
        g[t] += a[t] * g[t + 1]
    return g * h[:-1], g, a[0] * g[0]


def plain_scan(a: Tensor, b: Tensor, start: Tensor) -> Tensor:
    return torch.stack(
        [
            sum((b[s] * a[s + 1 : t + 1].prod(0) for s in range(t + 1)), start * a[: t + 1].prod(0))
            for t in range(len(a))
        ]
    )


pair(
    "linear scan: decay of the wrong step",
    "of h_t = a_t h_{t−1} + b_t the adjoint goes back from t + 1 to t by a_t instead of a_{t+1}",
    scan_forward,
    scan_backward,
    [rand(25, 6, 2, 3), randn(26, 6, 2, 3), randn(27, 2, 3)],
    true=(r"term|shift|rows",),
    reference=plain_scan,
)


def alignment_forward(logs: Tensor, labels: Tensor) -> Any:
    extended = [0, *itertools.chain.from_iterable((int(k), 0) for k in labels)]
    steps, places = len(logs), len(extended)
    before = torch.full((places, places), -torch.inf, dtype=logs.dtype)  # from the row to the column
    for s, k in enumerate(extended):
        before[max(s - 1, 0) : s + 1, s] = 0
        if s > 1 and k and k != extended[s - 2]:
            before[s - 2, s] = 0
    emitted = logs[:, extended]
    alpha, beta = torch.full_like(emitted, -torch.inf), torch.full_like(emitted, -torch.inf)
    alpha[0, :2], beta[-1, -2:] = emitted[0, :2], 0
    for t in range(1, steps):
        alpha[t] = torch.logsumexp(alpha[t - 1][:, None] + before, 0) + emitted[t]
        beta[-1 - t] = torch.logsumexp(before + emitted[steps - t] + beta[steps - t], 1)
    total = torch.logsumexp(alpha[-1, -2:], 0)
    return -total, (logs, extended, torch.exp(alpha + beta - total))


def alignment_backward(dy: Tensor, cache: Any) -> Any:
    logs, extended, occupied = cache
    d_logs = torch.zeros_like(logs)
    for s, k in enumerate(extended):
        d_logs[:, k] = -dy * occupied[:, s]
    return d_logs


def plain_alignment(logs: Tensor, labels: Tensor) -> Tensor:
    wanted, scores = labels.tolist(), []
    for path in itertools.product(range(logs.shape[1]), repeat=len(logs)):
        if [k for k, _ in itertools.groupby(path) if k] == wanted:
            scores.append(logs[torch.arange(len(logs)), list(path)].sum())
    return -torch.logsumexp(torch.stack(scores), 0)


pair(
    "connectionist temporal classification: the last blank alone",
    "the blank stands at three places of the extended labels, and its gradient is that of the last, not the sum",
    alignment_forward,
    alignment_backward,
    [randn(28, 5, 3).log_softmax(1), torch.tensor([1, 2])],
    true=(r"repeated indices|term|overwritten",),
    reference=plain_alignment,
)


def power_forward(x: Tensor) -> Any:
    spectrum = torch.fft.rfft(x)
    return spectrum.real**2 + spectrum.imag**2, (spectrum, x.shape[-1])


def power_backward(dy: Tensor, cache: Any) -> Any:
    spectrum, n = cache
    return 2 * n * torch.fft.irfft(dy * spectrum, n=n)


def plain_power(x: Tensor) -> Tensor:
    angle = torch.arange(x.shape[-1] // 2 + 1, dtype=x.dtype)[:, None] * torch.arange(x.shape[-1], dtype=x.dtype)
    angle = 2 * math.pi * angle / x.shape[-1]
    return (x @ angle.cos().mT) ** 2 + (x @ angle.sin().mT) ** 2


pair(
    "power spectrum: inner frequencies twice",
    "the inverse transform of half a spectrum counts all but the first frequency twice already",
    power_forward,
    power_backward,
    [randn(29, 3, 7)],
    true=(r"term|factor",),
    reference=plain_power,
)


def sparsemax_forward(x: Tensor) -> Any:
    ordered = x.sort(-1, descending=True).values
    above = ordered.cumsum(-1) - 1
    counts = torch.arange(1, x.shape[-1] + 1)
    size = (counts * ordered > above).sum(-1, keepdim=True)
    y = (x - above.gather(-1, size - 1) / size).clamp(min=0)
    return y, y > 0


def sparsemax_backward(dy: Tensor, kept: Any) -> Any:
    return kept * (dy - dy.mean(-1, keepdim=True))


pair(
    "sparsemax: mean over all",
    "what is subtracted from the cotangent is its mean over the whole row, not over the support",
    sparsemax_forward,
    sparsemax_backward,
    [1.5 * randn(30, 3, 6)],
    true=(r"term|mask ignored|factor",),
)
