"""Pairs: elementwise functions, segments, order, and costs of classes."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.unseen.subject import pair, rand, randn

# Elementwise, segments, order


def squared_forward(x: Tensor) -> Any:
    return x.relu() ** 2, x


def squared_backward(dy: Tensor, x: Any) -> Any:
    return 2 * x.abs() * dy


pair(
    "squared rectifier: slope on the negative side",
    "the slope is 2|x| on both sides, where it is 0 for negative x",
    squared_forward,
    squared_backward,
    [randn(13, 3, 7)],
    true=(r"mask ignored|term|derivative forgotten|zero",),
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


pair(
    "capped logits: one stride for all rows",
    "batch and tokens are walked over as one axis with the tokens' stride: wrong if they do not collapse in memory",
    cap_forward,
    cap_backward,
    [randn(14, 2, 3, 5)],
    true=(r"(?i)strided|stride|layout",),
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


pair(
    "softmax of segments: sum over all of them",
    "in graph attention the sum of p·dp runs over all edges, not over those of the edge's own node",
    segment_softmax_forward,
    segment_softmax_backward,
    [randn(15, 9, 2), torch.tensor([0, 2, 2, 3, 0, 2, 3, 3, 1])],
    true=(r"wrong axis|term",),
    reference=plain_segment_softmax,
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


pair(
    "quantile: shares exchanged",
    "of the two neighbours that are interpolated the lower gets the upper one's share and the other way round",
    quantile_forward,
    quantile_backward,
    [randn(16, 3, 8)],
    true=(r"swapped|term|exchanged",),
)


def highest_forward(x: Tensor) -> Any:
    y, where = x.cummax(0)
    return y, where


def highest_backward(dy: Tensor, where: Any) -> Any:
    return torch.zeros_like(dy).scatter(0, where.flip(0), dy.flip(0))


pair(
    "cumulative maximum: one of its places",
    "an element that is the maximum for several steps gets the cotangent of one of them, not the sum",
    highest_forward,
    highest_backward,
    [randn(17, 7, 3)],
    true=(r"repeated indices|term|overwritten",),
)


# Costs


def weighted_forward(logits: Tensor, target: Tensor, weights: Tensor) -> Any:
    logs, w = logits.log_softmax(1), weights[target]
    return -(w * logs[torch.arange(len(target)), target]).sum() / w.sum(), (logs, target, w)


def weighted_backward(dy: Tensor, cache: Any) -> Any:
    logs, target, w = cache
    return dy * w[:, None] * (logs.exp() - F.one_hot(target, logs.shape[1])) / len(target)


pair(
    "cross-entropy with class weights: by the batch",
    "forward divides by the sum of the examples' weights, backward by their number",
    weighted_forward,
    weighted_backward,
    [randn(18, 6, 4), torch.tensor([0, 3, 1, 1, 2, 3]), 0.2 + 2 * rand(19, 4)],
    true=(r"factor",),
    reference=lambda logits, target, weights: F.cross_entropy(logits, target, weights),
    not_differentiable=("weights",),
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


pair(
    "smoothed cross-entropy: the smooth part of ignored labels",
    "rows whose label is to be ignored get −ε/K, for the mask is on the sharp part alone",
    smoothed_forward,
    smoothed_backward,
    [randn(20, 6, 4), torch.tensor([0, -100, 1, 1, -100, 3])],
    true=(r"mask ignored|rows|term",),
    reference=lambda logits, target: F.cross_entropy(logits, target, ignore_index=-100, label_smoothing=0.1),
)


def distilled_forward(student: Tensor, teacher: Tensor) -> Any:
    logs, wanted = (student / 3).log_softmax(1), (teacher / 3).softmax(1)
    return 9 * (wanted * (wanted.log() - logs)).sum() / len(student), (logs.exp(), wanted)


def distilled_backward(dy: Tensor, cache: Any) -> Any:
    p, wanted = cache
    return dy * 9 * (p - wanted) / len(p)


pair(
    "distillation: temperature not divided by",
    "T² of the cost times p − q, without the 1/T of the logits: 3 times the right value",
    distilled_forward,
    distilled_backward,
    [randn(21, 5, 4), randn(22, 5, 4)],
    true=(r"factor: .*\b3\b",),
    not_differentiable=("teacher",),
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


pair(
    "contrastive cost: one direction for the keys",
    "the keys lack the gradient of the direction from key to query; the queries have both",
    contrast_forward,
    contrast_backward,
    [randn(23, 4, 5), randn(24, 4, 5)],
    true=(r"term|missing",),
    reference=plain_contrast,
)
