"""Pairs with piecewise constants, integers, masks, unusual shapes and shared memory."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.unseen.subject import pair, randn

# Piecewise constants, integers, masks


def fraction_forward(x: Tensor) -> tuple[Tensor, Tensor, None]:
    return x - x.floor(), x.floor(), None


def fraction_backward(d_fraction: Tensor, d_floor: Tensor, cache: None) -> Tensor:
    return d_fraction


pair(
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
    "attention with a causal mask and an unseen key",
    "the first query sees one key, so that its own gradient is zero, and no query sees the last key",
    attention_forward,
    attention_backward,
    lambda: [randn(11, 2, 4, 3), randn(12, 2, 5, 3), randn(13, 2, 5, 2), torch.ones(4, 5, dtype=torch.bool).tril()],
    reference=lambda q, k, v, mask: F.scaled_dot_product_attention(q, k, v, attn_mask=mask),
)


def segment_mean_forward(x: Tensor, segment: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    count = torch.bincount(segment, minlength=4).clamp(min=1)[:, None]
    total = torch.zeros(4, x.shape[1], dtype=x.dtype, device=x.device).index_add(0, segment, x)
    return total / count, (segment, count)


def segment_mean_backward(d: Tensor, cache: tuple[Tensor, Tensor]) -> Tensor:
    segment, count = cache
    return (d / count)[segment]


pair(
    "mean of each segment, one of them empty",
    "segment 2 is empty and its mean zero; the rows of a segment come in no order",
    segment_mean_forward,
    segment_mean_backward,
    lambda: [randn(14, 7, 2), torch.tensor([3, 0, 1, 3, 0, 3, 3])],
    reference=lambda x, segment: (
        (hot := F.one_hot(segment, 4).to(x.dtype)).T @ x / torch.maximum(hot.sum(0), torch.ones_like(hot[0]))[:, None]
    ),
)


# Shapes and memory


def joined_forward(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, tuple[Tensor, list[int]]]:
    whole = torch.cat([a, b, c], 1)
    return whole.exp(), (whole.exp(), [a.shape[1], b.shape[1], c.shape[1]])


def joined_backward(d: Tensor, cache: tuple[Tensor, list[int]]) -> tuple[Tensor, ...]:
    y, widths = cache
    return (d * y).split(widths, 1)


pair(
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
    "two outputs that are views of the input",
    "both outputs share the memory of x, so that whoever writes to one changes the other and the example",
    windows_forward,
    windows_backward,
    lambda: [randn(20, 3, 5, 2)],
    outputs=2,
)
