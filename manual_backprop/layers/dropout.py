"""Dropout: in training every activation is kept with probability `keep`, and enlarged to keep its mean.

    y = x ⊙ m / keep             m of ones (kept) and zeros (dropped), of the shape of x

    DO1  dx = dy ⊙ m / keep

m is drawn outside and comes in as a tensor. In evaluation there is no such layer. Source: Srivastava et al. 2014.
"""

from collections.abc import Iterator

import torch
from torch import Generator, Tensor

EQUATIONS = ("DO1",)
not_differentiable = ("mask",)

Cache = tuple[Tensor, float]


def forward(x: Tensor, mask: Tensor, keep: float) -> tuple[Tensor, Cache]:
    return x * mask / keep, (mask, keep)


def backward(dy: Tensor, cache: Cache) -> Tensor:
    mask, keep = cache
    return dy * mask / keep  # DO1


def examples(generator: Generator, dtype: torch.dtype = torch.float64) -> Iterator[tuple[Tensor, Tensor, float]]:
    for shape, keep in (((3, 4, 5), 0.7), ((7, 11), 0.3)):
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        mask = torch.rand(shape, generator=generator) < keep
        yield x.to(dtype), mask.to(dtype), keep
