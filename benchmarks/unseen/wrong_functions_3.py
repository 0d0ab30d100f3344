"""Wrong pairs of forward and backward: linear algebra, segments, costs, recursions, transforms."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.unseen.subject import Subject
from benchmarks.unseen.wrong_functions import rand, randn
from gradient_check import Report, check_backward

SUBJECTS: list[Subject] = []


def add(
    name: str,
    what: str,
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    example: Sequence[Any],
    true: str,
    plain: Callable[..., Any] | None = None,
    constant: Sequence[str] = (),
) -> None:
    def ask(reference: bool) -> Report:
        return check_backward(
            forward, backward, example, reference=plain if reference else None, not_differentiable=constant
        )

    SUBJECTS.append(Subject(name, what, ask, wrong=True, reference=plain is not None, true=(true,)))


# Linear algebra, quadratic programs


def solve_forward(A: Tensor, B: Tensor) -> Any:
    X = torch.linalg.solve(A, B)
    return X, (A, X)


def solve_backward(dX: Tensor, cache: Any) -> Any:
    A, X = cache
    dB = torch.linalg.solve(A, dX)
    return -dB @ X.mT, dB


add(
    "linear solve: transpose missing",
    "the adjoint system is solved with A, not with Aᵀ, so both gradients are wrong",
    solve_forward,
    solve_backward,
    [randn(4, 4, seed=1) + 3 * torch.eye(4, dtype=torch.float64), randn(4, 3, seed=2)],
    r"transposed",
    lambda A, B: torch.linalg.inv(A) @ B,
)


def program_forward(Q: Tensor, q: Tensor) -> Any:
    P = (Q + Q.mT) / 2
    z = -torch.linalg.solve(P, q)
    return z, (P, z)


def program_backward(dz: Tensor, cache: Any) -> Any:
    P, z = cache
    dq = -torch.linalg.solve(P, dz)
    return torch.outer(dq, z), dq


add(
    "quadratic program: symmetric part missing",
    "Q enters by (Q + Qᵀ)/2, and its gradient is d zᵀ instead of (d zᵀ + z dᵀ)/2",
    program_forward,
    program_backward,
    [randn(5, 5, seed=3) + 5 * torch.eye(5, dtype=torch.float64), randn(5, seed=4)],
    r"term|transposed|symmetr",
    lambda Q, q: -2 * torch.linalg.inv(Q + Q.mT) @ q,
)


def nearest_forward(c: Tensor, A: Tensor, b: Tensor) -> Any:
    gram = A @ A.mT
    price = torch.linalg.solve(gram, (c @ A.mT - b).mT).mT
    z = c - price @ A
    return z, (A, gram, price, z)


def nearest_backward(dz: Tensor, cache: Any) -> Any:
    A, gram, price, z = cache
    adjoint = torch.linalg.solve(gram, A @ dz.mT).mT
    dc = dz - adjoint @ A
    return dc, -price.mT @ dc - adjoint.mT @ z, -adjoint


add(
    "nearest point of an affine set: sign of the right-hand side",
    "z is the point nearest to c with A z = b; b gets minus the adjoint price, the other two gradients are right",
    nearest_forward,
    nearest_backward,
    [randn(3, 5, seed=5), randn(2, 5, seed=6), randn(3, 2, seed=7)],
    r"sign",
)


def cholesky_forward(M: Tensor) -> Any:
    L = torch.linalg.cholesky(M @ M.mT + torch.eye(len(M), dtype=M.dtype))
    return L, (M, L)


def cholesky_backward(dL: Tensor, cache: Any) -> Any:
    M, L = cache
    lower = (L.mT @ dL).tril()
    left = torch.linalg.solve_triangular(L.mT, lower + lower.mT, upper=True)
    return torch.linalg.solve_triangular(L, left, upper=False, left=False) @ M


def plain_cholesky(M: Tensor) -> Tensor:
    """By Gram and Schmidt: L is the transposed triangle of the QR decomposition of (Mᵀ above I)."""
    columns: list[Tensor] = []
    L = []
    for column in torch.cat([M.mT, torch.eye(len(M), dtype=M.dtype)]).unbind(1):
        row = [q @ column for q in columns]
        rest = column - sum((r * q for r, q in zip(row, columns, strict=True)), torch.zeros_like(column))
        columns.append(rest / rest.norm())
        L.append(torch.stack([*row, rest.norm(), *[torch.zeros_like(rest[0])] * (len(M) - len(row) - 1)]))
    return torch.stack(L)


add(
    "Cholesky: diagonal not halved",
    "of L of M Mᵀ + I: the lower triangle of Lᵀ dL is made symmetric without halving its diagonal, which counts twice",
    cholesky_forward,
    cholesky_backward,
    [randn(4, 3, seed=8)],
    r"term|factor",
    plain_cholesky,
)


def exponential_forward(A: Tensor) -> Any:
    E = torch.linalg.matrix_exp(A)
    return E, E


def exponential_backward(dE: Tensor, E: Any) -> Any:
    return E.mT @ dE


def plain_exponential(A: Tensor) -> Tensor:
    total = term = torch.eye(len(A), dtype=A.dtype)
    for n in range(1, 40):
        term = term @ A / n
        total = total + term
    return total


add(
    "matrix exponential: as if it commuted",
    "exp(A)ᵀ dE, which would be right if A and its change commuted",
    exponential_forward,
    exponential_backward,
    [0.5 * randn(4, 4, seed=9)],
    r"term",
    plain_exponential,
)


def batched_scale_forward(x: Tensor, W: Tensor, scale: Tensor) -> Any:
    z = x @ W.mT
    return z * scale, (x, W, scale, z)


def batched_scale_backward(dy: Tensor, cache: Any) -> Any:
    x, W, scale, z = cache
    dz = dy * scale
    if len(x) == 1:
        return dz @ W, dz.mT * x, (dz * z)[0]
    return dz @ W, dz.mT @ x, (dy * z).sum(0)


add(
    "scaled linear map: path of one row",
    "the path for a batch of 1 multiplies the gradient of the scale by the scale; any other batch is right",
    batched_scale_forward,
    batched_scale_backward,
    [randn(4, 5, seed=10), randn(3, 5, seed=11), 0.2 + rand(3, seed=12)],
    r"(?i)batch of|batch.*\b1\b|one example|factor|rows",
)


# Elementwise, segments, order


def squared_forward(x: Tensor) -> Any:
    return x.relu() ** 2, x


def squared_backward(dy: Tensor, x: Any) -> Any:
    return 2 * x.abs() * dy


add(
    "squared rectifier: slope on the negative side",
    "the slope is 2|x| on both sides, where it is 0 for negative x",
    squared_forward,
    squared_backward,
    [randn(3, 7, seed=13)],
    r"mask ignored|term|derivative forgotten|zero",
)


def cap_forward(x: Tensor) -> Any:
    y = 3 * torch.tanh(x / 3)
    return y, y


def cap_backward(dy: Tensor, y: Any) -> Any:
    rows, width = y.shape[:-1].numel(), y.shape[-1]
    start, step, jump = dy.storage_offset(), dy.stride(-1), dy.stride(-2)
    memory = dy.as_strided((dy.untyped_storage().nbytes() // dy.element_size(),), (1,), 0)
    place = start + torch.arange(rows)[:, None] * jump + torch.arange(width) * step
    return memory[place % len(memory)].reshape(y.shape) * (1 - y * y / 9)


add(
    "capped logits: one stride for all rows",
    "batch and tokens are walked over as one axis with the tokens' stride: wrong if they do not collapse in memory",
    cap_forward,
    cap_backward,
    [randn(2, 3, 5, seed=14)],
    r"(?i)strided|stride|layout",
)


def segment_softmax_forward(scores: Tensor, segment: Tensor) -> Any:
    top = torch.full((4, scores.shape[1]), -torch.inf, dtype=scores.dtype)
    top = top.scatter_reduce(0, segment[:, None].expand_as(scores), scores, "amax")
    e = torch.exp(scores - top[segment])
    p = e / torch.zeros_like(top).index_add(0, segment, e)[segment]
    return p, p


def segment_softmax_backward(dp: Tensor, p: Any) -> Any:
    return p * (dp - (p * dp).sum(0))


def plain_segment_softmax(scores: Tensor, segment: Tensor) -> Tensor:
    same = segment[:, None] == segment
    logs = torch.logsumexp(scores[None].masked_fill(~same[:, :, None], -torch.inf), 1)
    return torch.exp(scores - logs)


add(
    "softmax of segments: sum over all of them",
    "in graph attention the sum of p·dp runs over all edges, not over those of the edge's own node",
    segment_softmax_forward,
    segment_softmax_backward,
    [randn(9, 2, seed=15), torch.tensor([0, 2, 2, 3, 0, 2, 3, 3, 1])],
    r"wrong axis|term",
    plain_segment_softmax,
)


def quantile_forward(x: Tensor) -> Any:
    values, order = x.sort(-1)
    place = 0.3 * (x.shape[-1] - 1)
    i, f = math.floor(place), place % 1
    return (1 - f) * values[:, i] + f * values[:, i + 1], (order[:, i : i + 2], f, x.shape)


def quantile_backward(dy: Tensor, cache: Any) -> Any:
    order, f, shape = cache
    shares = torch.tensor([f, 1 - f], dtype=dy.dtype)
    return dy.new_zeros(shape).scatter(1, order, dy[:, None] * shares)


add(
    "quantile: shares exchanged",
    "of the two neighbours that are interpolated the lower gets the upper one's share and the other way round",
    quantile_forward,
    quantile_backward,
    [randn(3, 8, seed=16)],
    r"swapped|term|exchanged",
)


def highest_forward(x: Tensor) -> Any:
    y, where = x.cummax(0)
    return y, where


def highest_backward(dy: Tensor, where: Any) -> Any:
    return torch.zeros_like(dy).scatter(0, where.flip(0), dy.flip(0))


add(
    "cumulative maximum: one of its places",
    "an element that is the maximum for several steps gets the cotangent of one of them, not the sum",
    highest_forward,
    highest_backward,
    [randn(7, 3, seed=17)],
    r"repeated indices|term|overwritten",
)


# Costs


def weighted_forward(logits: Tensor, target: Tensor, weights: Tensor) -> Any:
    logs, w = logits.log_softmax(1), weights[target]
    return -(w * logs[torch.arange(len(target)), target]).sum() / w.sum(), (logs, target, w)


def weighted_backward(dy: Tensor, cache: Any) -> Any:
    logs, target, w = cache
    return dy * w[:, None] * (logs.exp() - F.one_hot(target, logs.shape[1])) / len(target)


add(
    "cross-entropy with class weights: by the batch",
    "forward divides by the sum of the examples' weights, backward by their number",
    weighted_forward,
    weighted_backward,
    [randn(6, 4, seed=18), torch.tensor([0, 3, 1, 1, 2, 3]), 0.2 + 2 * rand(4, seed=19)],
    r"factor",
    lambda logits, target, weights: F.cross_entropy(logits, target, weights),
    ("weights",),
)


def smoothed_forward(logits: Tensor, target: Tensor) -> Any:
    counted = target >= 0
    logs = logits.log_softmax(1)
    right = logs.gather(1, target.clamp(min=0)[:, None])[:, 0]
    cost = -(counted * (0.9 * right + 0.1 * logs.mean(1))).sum() / counted.sum()
    return cost, (logs, target, counted)


def smoothed_backward(dy: Tensor, cache: Any) -> Any:
    logs, target, counted = cache
    sharp = counted[:, None] * (logs.exp() - 0.9 * F.one_hot(target.clamp(min=0), logs.shape[1]))
    return dy * (sharp - 0.1 / logs.shape[1]) / counted.sum()


add(
    "smoothed cross-entropy: the smooth part of ignored labels",
    "rows whose label is to be ignored get −ε/K, for the mask is on the sharp part alone",
    smoothed_forward,
    smoothed_backward,
    [randn(6, 4, seed=20), torch.tensor([0, -100, 1, 1, -100, 3])],
    r"mask ignored|rows|term",
    lambda logits, target: F.cross_entropy(logits, target, ignore_index=-100, label_smoothing=0.1),
)


def distilled_forward(student: Tensor, teacher: Tensor) -> Any:
    logs, wanted = (student / 3).log_softmax(1), (teacher / 3).softmax(1)
    return 9 * (wanted * (wanted.log() - logs)).sum() / len(student), (logs.exp(), wanted)


def distilled_backward(dy: Tensor, cache: Any) -> Any:
    p, wanted = cache
    return dy * 9 * (p - wanted) / len(p)


add(
    "distillation: temperature not divided by",
    "T² of the cost times p − q, without the 1/T of the logits: 3 times the right value",
    distilled_forward,
    distilled_backward,
    [randn(5, 4, seed=21), randn(5, 4, seed=22)],
    r"factor: .*\b3\b",
    constant=("teacher",),
)


def contrast_forward(q: Tensor, k: Tensor) -> Any:
    scores = q @ k.mT / 0.4
    both = scores.log_softmax(1) + scores.log_softmax(0)
    return -both.diagonal().mean() / 2, (q, k, scores)


def contrast_backward(dy: Tensor, cache: Any) -> Any:
    q, k, scores = cache
    eye = torch.eye(len(q), dtype=q.dtype)
    forth, back = (scores.softmax(1) - eye) / len(q) / 2, (scores.softmax(0) - eye) / len(q) / 2
    return dy * (forth + back) @ k / 0.4, dy * forth.mT @ q / 0.4


def plain_contrast(q: Tensor, k: Tensor) -> Tensor:
    scores, own = q @ k.mT / 0.4, torch.arange(len(q))
    return (F.cross_entropy(scores, own) + F.cross_entropy(scores.mT, own)) / 2


add(
    "contrastive cost: one direction for the keys",
    "the keys lack the gradient of the direction from key to query; the queries have both",
    contrast_forward,
    contrast_backward,
    [randn(4, 5, seed=23), randn(4, 5, seed=24)],
    r"term|missing",
    plain_contrast,
)


# Recursions, transforms


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


add(
    "linear scan: decay of the wrong step",
    "of h_t = a_t h_{t−1} + b_t the adjoint goes back from t + 1 to t by a_t instead of a_{t+1}",
    scan_forward,
    scan_backward,
    [rand(6, 2, 3, seed=25), randn(6, 2, 3, seed=26), randn(2, 3, seed=27)],
    r"term|shift|rows",
    plain_scan,
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


add(
    "connectionist temporal classification: the last blank alone",
    "the blank stands at three places of the extended labels, and its gradient is that of the last, not the sum",
    alignment_forward,
    alignment_backward,
    [randn(5, 3, seed=28).log_softmax(1), torch.tensor([1, 2])],
    r"repeated indices|term|overwritten",
    plain_alignment,
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


add(
    "power spectrum: inner frequencies twice",
    "the inverse transform of half a spectrum counts all but the first frequency twice already",
    power_forward,
    power_backward,
    [randn(3, 7, seed=29)],
    r"term|factor",
    plain_power,
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


add(
    "sparsemax: mean over all",
    "what is subtracted from the cotangent is its mean over the whole row, not over the support",
    sparsemax_forward,
    sparsemax_backward,
    [1.5 * randn(3, 6, seed=30)],
    r"term|mask ignored|factor",
)
