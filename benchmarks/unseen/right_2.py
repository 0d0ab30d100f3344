"""Right pairs that a careless check would accuse: integers, masks, shapes, memory, precision and recursions."""

import math
from itertools import combinations
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.unseen.right import pair, randn
from benchmarks.unseen.subject import Subject

SUBJECTS: list[Subject] = []


# piecewise constants, integers, masks


def fraction_forward(x: Tensor) -> tuple[Tensor, Tensor, None]:
    return x - x.floor(), x.floor(), None


def fraction_backward(d_fraction: Tensor, d_floor: Tensor, cache: None) -> Tensor:
    return d_fraction


pair(
    SUBJECTS,
    "fraction and floor",
    "of two outputs the second is piecewise constant, and the gradient is the first's very cotangent, not a copy",
    fraction_forward,
    fraction_backward,
    lambda: [3 * randn(7, 4, 3)],
    outputs=2,
)


def signed_forward(x: Tensor, weight: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    return x.sign() @ weight, (x, weight)


def signed_backward(d: Tensor, cache: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    x, _ = cache
    return torch.zeros_like(x), x.sign().T @ d


pair(
    SUBJECTS,
    "signs times a weight",
    "the gradient of x is zero throughout, and right, though x changes the output where it changes its sign",
    signed_forward,
    signed_backward,
    lambda: [randn(8, 5, 3), randn(9, 3, 2)],
)


def padded_lookup_forward(weight: Tensor, ids: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    return weight[ids] * (ids != 0)[..., None], (weight, ids)


def padded_lookup_backward(d: Tensor, cache: tuple[Tensor, Tensor]) -> Tensor:
    weight, ids = cache
    kept = d * (ids != 0)[..., None]
    return torch.zeros_like(weight).index_add(0, ids.reshape(-1), kept.reshape(-1, weight.shape[1]))


pair(
    SUBJECTS,
    "embedding with a padding row and repeated ids",
    "row 0 is padding and has no gradient though it is looked up, row 4 is looked up four times, rows 2 and 5 never",
    padded_lookup_forward,
    padded_lookup_backward,
    lambda: [randn(10, 6, 3), torch.tensor([[4, 0, 1, 4], [0, 0, 4, 3], [1, 4, 3, 0]])],
)


def attention_forward(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    scores = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~mask, -math.inf)
    p = torch.softmax(scores, -1)
    return p @ v, (q, k, v, p)


def attention_backward(d: Tensor, cache: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v, p = cache
    dp = d @ v.mT
    ds = p * (dp - (p * dp).sum(-1, keepdim=True)) / math.sqrt(q.shape[-1])
    return ds @ k, ds.mT @ q, p.mT @ d


pair(
    SUBJECTS,
    "attention with a causal mask and an unseen key",
    "the first query sees one key, so that its own gradient is zero, and no query sees the last key",
    attention_forward,
    attention_backward,
    lambda: [randn(11, 2, 4, 3), randn(12, 2, 5, 3), randn(13, 2, 5, 2), torch.ones(4, 5, dtype=torch.bool).tril()],
    lambda q, k, v, mask: F.scaled_dot_product_attention(q, k, v, attn_mask=mask),
)


def segment_mean_forward(x: Tensor, segment: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    count = torch.bincount(segment, minlength=4).clamp(min=1)[:, None]
    total = torch.zeros(4, x.shape[1], dtype=x.dtype, device=x.device).index_add(0, segment, x)
    return total / count, (segment, count)


def segment_mean_backward(d: Tensor, cache: tuple[Tensor, Tensor]) -> Tensor:
    segment, count = cache
    return (d / count)[segment]


pair(
    SUBJECTS,
    "mean of each segment, one of them empty",
    "segment 2 is empty and its mean zero; the rows of a segment come in no order",
    segment_mean_forward,
    segment_mean_backward,
    lambda: [randn(14, 7, 2), torch.tensor([3, 0, 1, 3, 0, 3, 3])],
    lambda x, segment: (
        (hot := F.one_hot(segment, 4).to(x.dtype)).T @ x / torch.maximum(hot.sum(0), torch.ones_like(hot[0]))[:, None]
    ),
)


# shapes and memory


def joined_forward(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, tuple[Tensor, list[int]]]:
    whole = torch.cat([a, b, c], 1)
    return whole.exp(), (whole.exp(), [a.shape[1], b.shape[1], c.shape[1]])


def joined_backward(d: Tensor, cache: tuple[Tensor, list[int]]) -> tuple[Tensor, ...]:
    y, widths = cache
    return (d * y).split(widths, 1)


pair(
    SUBJECTS,
    "joining with an empty part",
    "the second of three arguments has no element, and the gradients are three views of one tensor",
    joined_forward,
    joined_backward,
    lambda: [randn(15, 3, 2, 4), torch.zeros(3, 0, 4, dtype=torch.float64), randn(16, 3, 1, 4)],
)


def broadcast_forward(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    return a * b + c * c, (a, b, c)


def broadcast_backward(d: Tensor, cache: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    a, b, c = cache
    da, db, dc = d * b, d * a, 2 * d * c
    return da.sum_to_size(a.shape), db.sum_to_size(b.shape), dc.sum_to_size(c.shape)


pair(
    SUBJECTS,
    "axes of size one, broadcast",
    "every axis of every argument that is not 1 is broadcast against ones, and the third argument has a single element",
    broadcast_forward,
    broadcast_backward,
    lambda: [randn(17, 1, 4, 1), randn(18, 3, 1, 5), randn(19, 1)],
)


def windows_forward(x: Tensor) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    return x.transpose(0, 1), x[:, ::2], tuple(x.shape)


def windows_backward(d_turned: Tensor, d_even: Tensor, shape: tuple[int, ...]) -> Tensor:
    spread = torch.zeros(shape, dtype=d_even.dtype, device=d_even.device)
    spread[:, ::2] = d_even
    return d_turned.transpose(0, 1) + spread


pair(
    SUBJECTS,
    "two outputs that are views of the input",
    "both outputs share the memory of x, so that whoever writes to one changes the other and the example",
    windows_forward,
    windows_backward,
    lambda: [randn(20, 3, 5, 2)],
    outputs=2,
)


# precision


def siren_forward(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    angle = 30 * (x @ weight + bias)
    return angle.sin(), (x, weight, angle)


def siren_backward(d: Tensor, cache: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    x, weight, angle = cache
    da = 30 * d * angle.cos()
    return da @ weight.T, x.T @ da, da.sum(0)


pair(
    SUBJECTS,
    "sine layer in float32",
    "angles of about 60, whose rounding in float32 leaves the cosine 1e-5: right within 1e-4 relative, and no closer",
    siren_forward,
    siren_backward,
    lambda: [
        randn(21, 4, 9, dtype=torch.float32),
        0.7 * randn(22, 9, 3, dtype=torch.float32),
        randn(23, 3, dtype=torch.float32),
    ],
    lambda x, weight, bias: torch.sin(30 * F.linear(x, weight.T, bias)),
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
    SUBJECTS,
    "gelu in bfloat16, float32 inside",
    "input, output and gradient have 8 bits, so that the gradient is right within 2^-8 relative; inside it is float32",
    gelu_forward,
    gelu_backward,
    lambda: [2 * randn(24, 3, 7, dtype=torch.bfloat16)],
    lambda x: F.gelu(x, approximate="tanh"),
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
    SUBJECTS,
    "rms norm in float16, float32 inside",
    "squares of 400 overflow in float16, and x has gradients of 1e-3: right within 1e-3 relative, float16's last bit",
    rms_norm_forward,
    rms_norm_backward,
    lambda: [400 * randn(25, 3, 6, dtype=torch.float16), randn(26, 6, dtype=torch.float16)],
    lambda x, gain: F.rms_norm(x.float(), gain.shape, gain.float(), eps=1e-6).to(x.dtype),
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
    SUBJECTS,
    "log of a sum in random order",
    "float32, added up in another order at every call, so gradients differ in the last bit: right within 1e-6 relative",
    shuffled_forward,
    shuffled_backward,
    lambda: [randn(27, 2, 301, dtype=torch.float32)],
    lambda x: torch.logsumexp(x, 1),
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
    SUBJECTS,
    "NumPy: rows of a layer by repeated ids",
    "arrays instead of tensors, integers among them; row 1 is taken three times and row 3 never",
    numpy_lookup_forward,
    numpy_lookup_backward,
    lambda: [randn(28, 4, 3).numpy(), randn(29, 3, 2).numpy(), np.array([1, 0, 1, 2, 1])],
)


# linear algebra, convolutions, recursions


def solve_forward(a: Tensor, b: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    x = torch.linalg.solve(a, b)
    return x, (a, x)


def solve_backward(d: Tensor, cache: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    a, x = cache
    db = torch.linalg.solve(a.mT, d)
    return -db @ x.mT, db


pair(
    SUBJECTS,
    "linear system",
    "well conditioned as given, but a matrix of zeros or of equal numbers has no solution, and the forward raises",
    solve_forward,
    solve_backward,
    lambda: [4 * torch.eye(4, dtype=torch.float64) + 0.5 * randn(30, 4, 4), randn(31, 4, 3)],
    lambda a, b: torch.linalg.inv(a) @ b,
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
    SUBJECTS,
    "Cholesky factor",
    "half of the output is constant zero, and what the cotangent holds there must not count",
    cholesky_forward,
    cholesky_backward,
    lambda: [randn(32, 4, 5)],
    cholesky_by_columns,
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
    SUBJECTS,
    "circular convolution by Fourier transforms",
    "real numbers in and out and complex ones between, along an axis of odd length",
    circular_forward,
    circular_backward,
    lambda: [randn(33, 2, 9), randn(34, 9)],
    circulant,
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
    SUBJECTS,
    "convolution with stride 2, dilation 3 and two groups",
    "positions 1, 9 and 11 of x are used by no window, so that their gradients are zero, and rightly",
    convolution_forward,
    convolution_backward,
    lambda: [randn(35, 2, 4, 12), randn(36, 6, 2, 3)],
    lambda x, weight: F.conv1d(x, weight, stride=2, dilation=3, groups=2),
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
    SUBJECTS,
    "monotone alignment, as of CTC",
    "a recursion in logarithms with -1e30 for what cannot be reached; a third of the scores have the gradient zero",
    alignment_forward,
    alignment_backward,
    lambda: [2 * randn(37, 2, 6, 3)],
    alignment_by_paths,
)
