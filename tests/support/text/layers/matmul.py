"""A product with a matrix: z = x Wᵀ

x (…, I), W (O, I), z (…, O)

MM1  dx = dz W
MM2  dW = Σ dzᵀ x             over all places of …
"""

from collections.abc import Iterator

import torch
from torch import Generator, Tensor

EQUATIONS = ("MM1", "MM2")

Cache = tuple[Tensor, Tensor]


def forward(x: Tensor, W: Tensor) -> tuple[Tensor, Cache]:
    return x @ W.T, (x, W)


def backward(dz: Tensor, cache: Cache) -> tuple[Tensor, Tensor]:
    x, W = cache
    dx = dz @ W  # MM1
    dW = dz.reshape(-1, W.shape[0]).T @ x.reshape(-1, W.shape[1])  # MM2
    return dx, dW


def examples(generator: Generator) -> Iterator[tuple[Tensor, Tensor]]:
    for shape in ((5, 4), (2, 3, 4)):
        yield tuple(torch.randn(size, generator=generator, dtype=torch.float64) for size in (shape, (6, 4)))
