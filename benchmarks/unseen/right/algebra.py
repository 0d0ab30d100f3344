"""Pairs: linear algebra, convolutions, recursions."""

from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.unseen.subject import pair, randn


def solve_forward(a: Tensor, b: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    x = torch.linalg.solve(a, b)
    return x, (a, x)


def solve_backward(d: Tensor, cache: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    a, x = cache
    db = torch.linalg.solve(a.mT, d)
    return -db @ x.mT, db


pair(
    "linear system",
    "well conditioned as given, but a matrix of zeros or of equal numbers has no solution, and the forward raises",
    solve_forward,
    solve_backward,
    lambda: [4 * torch.eye(4, dtype=torch.float64) + 0.5 * randn(30, 4, 4), randn(31, 4, 3)],
    reference=lambda a, b: torch.linalg.inv(a) @ b,
)


def cholesky_forward(m: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    lower = torch.linalg.cholesky(m @ m.mT + 3 * torch.eye(len(m), dtype=m.dtype, device=m.device))
    return lower, (m, lower)


def cholesky_backward(d: Tensor, cache: tuple[Tensor, Tensor]) -> Tensor:
    m, lower = cache
    inner = (lower.mT @ d.tril()).tril()
    inner = inner - 0.5 * inner.diagonal().diag()
    left = torch.linalg.solve_triangular(lower.mT, inner, upper=True)
    s = torch.linalg.solve_triangular(lower, left, upper=False, left=False)
    return (s + s.mT) @ m


def cholesky_by_columns(m: Tensor) -> Tensor:
    rest = m @ m.mT + 3 * torch.eye(len(m), dtype=m.dtype, device=m.device)
    columns = []
    for k in range(len(m)):
        column = torch.cat([torch.zeros_like(rest[:k, k]), rest[k:, k] / rest[k, k].sqrt()])
        rest = rest - torch.outer(column, column)
        columns.append(column)
    return torch.stack(columns, 1)


pair(
    "Cholesky factor",
    "half of the output is constant zero, and what the cotangent holds there must not count",
    cholesky_forward,
    cholesky_backward,
    lambda: [randn(32, 4, 5)],
    reference=cholesky_by_columns,
)


def circular_forward(x: Tensor, kernel: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    return torch.fft.irfft(torch.fft.rfft(x) * torch.fft.rfft(kernel), n=x.shape[1]), (x, kernel)


def circular_backward(d: Tensor, cache: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    x, kernel = cache
    n, spectrum = x.shape[1], torch.fft.rfft(d)
    dx = torch.fft.irfft(spectrum * torch.fft.rfft(kernel).conj(), n=n)
    return dx, torch.fft.irfft(spectrum * torch.fft.rfft(x).conj(), n=n).sum(0)


def circulant(x: Tensor, kernel: Tensor) -> Tensor:
    i = torch.arange(len(kernel), device=x.device)
    return x @ kernel[(i - i[:, None]) % len(kernel)]


pair(
    "circular convolution by Fourier transforms",
    "real numbers in and out and complex ones between, along an axis of odd length",
    circular_forward,
    circular_backward,
    lambda: [randn(33, 2, 9), randn(34, 9)],
    reference=circulant,
)


def convolution_forward(x: Tensor, weight: Tensor) -> tuple[Tensor, tuple[Any, ...]]:
    outs, each, taps = weight.shape
    length = (x.shape[2] - 3 * (taps - 1) - 1) // 2 + 1
    windows = [x[:, :, 3 * t : 3 * t + 2 * (length - 1) + 1 : 2] for t in range(taps)]
    patches = torch.stack(windows, 2).unflatten(1, (-1, each))
    grouped = weight.unflatten(0, (-1, outs * each // x.shape[1]))
    return torch.einsum("bgctl,goct->bgol", patches, grouped).flatten(1, 2), (x.shape, patches, grouped)


def convolution_backward(d: Tensor, cache: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    shape, patches, grouped = cache
    parts = d.unflatten(1, grouped.shape[:2])
    d_patches = torch.einsum("bgol,goct->bgctl", parts, grouped).flatten(1, 2)
    dx = torch.zeros(shape, dtype=d.dtype, device=d.device)
    for t in range(grouped.shape[3]):
        dx[:, :, 3 * t : 3 * t + 2 * (d.shape[2] - 1) + 1 : 2] += d_patches[:, :, t]
    return dx, torch.einsum("bgol,bgctl->goct", parts, patches).flatten(0, 1)


pair(
    "convolution with stride 2, dilation 3 and two groups",
    "positions 1, 9 and 11 of x are used by no window, so that their gradients are zero, and rightly",
    convolution_forward,
    convolution_backward,
    lambda: [randn(35, 2, 4, 12), randn(36, 6, 2, 3)],
    reference=lambda x, weight: F.conv1d(x, weight, stride=2, dilation=3, groups=2),
)


def alignment_forward(e: Tensor) -> tuple[Tensor, tuple[list[Tensor], list[Tensor]]]:
    far = torch.full_like(e[:, 0, 1:], -1e30)
    alphas, sums = [torch.cat([e[:, 0, :1], far], 1)], []
    for t in range(1, e.shape[1]):
        moved = torch.cat([torch.full_like(e[:, 0, :1], -1e30), alphas[-1][:, :-1]], 1)
        sums.append(torch.logaddexp(alphas[-1], moved))
        alphas.append(sums[-1] + e[:, t])
    return alphas[-1][:, -1], (alphas, sums)


def alignment_backward(d: Tensor, cache: tuple[list[Tensor], list[Tensor]]) -> Tensor:
    alphas, sums = cache
    g = torch.cat([torch.zeros_like(alphas[0][:, 1:]), d[:, None]], 1)
    steps = [g]
    for alpha, total in zip(reversed(alphas[:-1]), reversed(sums), strict=True):
        stayed = g * (alpha - total).exp()
        moved = g[:, 1:] * (alpha[:, :-1] - total[:, 1:]).exp()
        g = stayed + torch.cat([moved, torch.zeros_like(g[:, :1])], 1)
        steps.append(g)
    steps[-1] = torch.cat([g[:, :1], torch.zeros_like(g[:, 1:])], 1)
    return torch.stack(steps[::-1], 1)


def alignment_by_paths(e: Tensor) -> Tensor:
    length, states = e.shape[1:]
    paths = []
    for moves in combinations(range(1, length), states - 1):
        at = [sum(t >= move for move in moves) for t in range(length)]
        paths.append(e[:, range(length), at].sum(1))
    return torch.logsumexp(torch.stack(paths, 1), 1)


pair(
    "monotone alignment, as of CTC",
    "a recursion in logarithms with -1e30 for what cannot be reached; a third of the scores have the gradient zero",
    alignment_forward,
    alignment_backward,
    lambda: [2 * randn(37, 2, 6, 3)],
    reference=alignment_by_paths,
)
