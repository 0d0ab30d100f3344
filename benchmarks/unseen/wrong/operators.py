"""Custom operators of torch.library."""

from typing import Any

import torch
from torch import Tensor

from benchmarks.unseen.subject import function, rand, randn


@torch.library.custom_op("unseen_v::soft_threshold", mutates_args=())
def soft_threshold(x: Tensor, threshold: Tensor) -> Tensor:
    return x.sign() * (x.abs() - threshold).clamp(min=0)


def soft_threshold_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def soft_threshold_backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
    x, threshold = ctx.saved_tensors
    kept = x.abs() > threshold
    return dy * kept, (dy * kept * x.sign()).sum(0)


soft_threshold.register_autograd(soft_threshold_backward, setup_context=soft_threshold_context)

function(
    "soft threshold: sign of the threshold",
    "the threshold's gradient is −Σ sign(x) dy over what is kept; here it is without the minus",
    soft_threshold,
    [2 * randn(57, 4, 5), 0.1 + 0.5 * rand(58, 5)],
    true=(r"sign",),
)


@torch.library.custom_op("unseen_v::deformed", mutates_args=())
def deformed(x: Tensor, offset: Tensor) -> Tensor:
    last = x.shape[1] - 1
    place = (torch.arange(last + 1, dtype=x.dtype) + offset).clamp(0, last)
    left = place.floor().long().clamp(max=last - 1)
    return x[:, left] + (place - left) * (x[:, left + 1] - x[:, left])


def deformed_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def deformed_backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
    x, offset = ctx.saved_tensors
    last = x.shape[1] - 1
    place = (torch.arange(last + 1, dtype=x.dtype) + offset).clamp(0, last)
    left = place.floor().long().clamp(max=last - 1)
    dx = torch.zeros_like(x).index_add(1, left, dy * (1 - place + left)).index_add(1, left + 1, dy * (place - left))
    return dx, (dy * (x[:, left + 1] - x[:, left])).sum(0)


deformed.register_autograd(deformed_backward, setup_context=deformed_context)


def plain_deformed(x: Tensor, offset: Tensor) -> Tensor:
    steps = torch.arange(x.shape[1], dtype=x.dtype)
    place = torch.minimum((steps + offset).clamp(min=0), steps[-1])
    return x @ (1 - (place - steps[:, None]).abs()).clamp(min=0)


function(
    "deformable sampler: offsets beyond the border",
    "an offset that points out of the signal is clamped in forward and gets the slope of the border in backward, not 0",
    deformed,
    [randn(59, 3, 7), 0.6 + 2.3 * torch.tensor([-1, 0.3, -0.9, 0.5, 0.2, 0.7, -0.4], dtype=torch.float64)],
    true=(r"mask ignored|rows|term|zero|derivative forgotten",),
    reference=plain_deformed,
)
