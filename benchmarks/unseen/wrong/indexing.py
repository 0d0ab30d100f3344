"""Pairs: gathers, scatters, padding, rolling and stacking."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.unseen.subject import function, pair, randn

# Gathers and scatters


def segment_mean_forward(x: Tensor, segment: Tensor) -> tuple[Tensor, Any]:
    count = torch.bincount(segment, minlength=4).clamp(min=1).to(x.dtype)
    total = x.new_zeros(4, x.shape[1]).index_add(0, segment, x)
    return total / count[:, None], (segment, count)


def segment_mean_backward(dy: Tensor, cache: Any) -> Tensor:
    segment, count = cache
    dx = dy.new_zeros(len(segment), dy.shape[1])
    start = 0
    for i in range(1, len(segment)):
        if segment[i] != segment[i - 1]:  # a segment ends here
            dx[start:i] = dy[segment[start]] / count[segment[start]]
            start = i
    return dx


def segment_mean(x: Tensor, segment: Tensor) -> Tensor:
    belongs = (segment == torch.arange(4)[:, None]).to(x.dtype)
    return belongs @ x / belongs.sum(1, keepdim=True).clamp(min=1)


pair(
    "means of segments: the last segment is never closed",
    "a segment's gradient is written where the next one begins, and after the last there is no next",
    segment_mean_forward,
    segment_mean_backward,
    [randn(107, 7, 3), torch.tensor([0, 0, 1, 2, 2, 3, 3])],
    reference=segment_mean,
    true=(r"^(rows|zero|missing|term)", r"\blast\b"),
)


def messages_forward(x: Tensor, w: Tensor, source: Tensor, target: Tensor) -> tuple[Tensor, Any]:
    return torch.zeros_like(x).index_add(0, target, w[:, None] * x[source]), (x, w, source, target)


def messages_backward(dy: Tensor, cache: Any) -> tuple[Tensor, ...]:
    x, w, source, target = cache
    d_message = dy[target]
    dx = torch.zeros_like(x)
    dx[source] = w[:, None] * d_message
    return dx, (d_message * x[source]).sum(1)


pair(
    "messages along edges: a node with two outgoing edges",
    "the gradients of edges from one node overwrite each other; in the example each node sends once",
    messages_forward,
    messages_backward,
    [randn(108, 5, 3), randn(109, 5), torch.tensor([3, 0, 4, 1, 2]), torch.tensor([1, 1, 0, 3, 1])],
    true=(r"^(repeated indices|rows|term)", r"repeat|twice"),
)


# Padding, rolling, stacking


class Roll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.roll(x, 2, 1)

    @staticmethod
    def backward(ctx: Any, *d_outputs: Tensor) -> Tensor:
        return torch.roll(d_outputs[0], 2, 1)


function(
    "roll: rolled on, not back",
    "the gradient is rolled by 2 in forward's direction",
    Roll.apply,
    [randn(128, 3, 7)],
    true=(r"^(rows|transposed|term|sign)", r"roll|shift|permut|order"),
)


def reflect_forward(x: Tensor) -> tuple[Tensor, Any]:
    return torch.cat([x[:, 1:3].flip(1), x, x[:, -3:-1].flip(1)], 1), x.shape


def reflect_backward(dy: Tensor, shape: Any) -> Tensor:
    return dy[:, 2:-2].clone()


pair(
    "reflecting padding: the margins' gradient lost",
    "what arrives at the mirrored elements is cut off and not added to their originals",
    reflect_forward,
    reflect_backward,
    [randn(129, 3, 6)],
    reference=lambda x: F.pad(x, (2, 2), mode="reflect"),
    true=(r"^(term|rows|missing)", r"repeat|margin|padd"),
)


def stack_forward(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Any]:
    return torch.stack([a, b, c], 1), None


def stack_backward(dy: Tensor, cache: Any) -> tuple[Tensor, ...]:
    return dy.unbind(1)[::-1]


pair(
    "stack: the last gradient first",
    "the three gradients are returned in the reverse order, with the middle one right",
    stack_forward,
    stack_backward,
    [randn(130, 4, 2), randn(131, 4, 2), randn(132, 4, 2)],
    true=(r"^swapped",),
)


def cube_forward(x: Tensor) -> tuple[Tensor, Any]:
    return x**3, x


def cube_backward(dy: Tensor, x: Tensor) -> Tensor:
    dx = torch.empty_like(dy)  # has the strides of dy
    dx.as_strided((dx.numel(),), (1,)).copy_((3 * x**2 * dy).reshape(-1))
    return dx


pair(
    "cube: written row by row into a tensor like the cotangent",
    "the result of a transposed cotangent is transposed in memory, and filled as if it were not",
    cube_forward,
    cube_backward,
    [randn(133, 4, 5)],
    true=(r"^strided", r"contiguous|strid"),
)
