"""Dropout: y = x ⊙ mask / keep, with a mask of ones (kept, with probability `keep`) and zeros

dx = dy ⊙ mask / keep

The mask is drawn outside and comes in as a tensor. Source: Srivastava et al. 2014.
"""

from collections.abc import Iterator

import torch
from torch import Generator, Tensor

not_differentiable = ("mask",)

Cache = tuple[Tensor, float]


def forward(x: Tensor, mask: Tensor, keep: float) -> tuple[Tensor, Cache]:
    return x * mask / keep, (mask, keep)


def backward(dy: Tensor, cache: Cache) -> Tensor:
    mask, keep = cache
    return dy * mask / keep


def examples(generator: Generator, dtype: torch.dtype = torch.float64) -> Iterator[tuple[Tensor, Tensor, float]]:
    x = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
    mask = torch.rand(3, 4, 5, generator=generator) < 0.7
    yield x.to(dtype), mask.to(dtype), 0.7
