"""The affine map: z = x Wᵀ + b with x (B, I), W (O, I), b (O,), z (B, O)

dx = dz W,  dW = dzᵀ x,  db = Σ_batch dz
"""

from collections.abc import Iterator

import torch
from torch import Generator, Tensor

Cache = tuple[Tensor, Tensor]


def forward(x: Tensor, W: Tensor, b: Tensor) -> tuple[Tensor, Cache]:
    return torch.addmm(b, x, W.T), (x, W)


def backward(dz: Tensor, cache: Cache) -> tuple[Tensor, Tensor, Tensor]:
    x, W = cache
    return dz @ W, dz.T @ x, dz.sum(dim=0)


def examples(generator: Generator, dtype: torch.dtype = torch.float64) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    sizes = ((5, 3), (4, 3), (4,))
    x, W, b = (torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for size in sizes)
    yield x, W, b
