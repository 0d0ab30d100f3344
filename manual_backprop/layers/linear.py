"""The affine map: z = x Wᵀ + b

    x (…, I), W (O, I), b (O,), z (…, O); every place of … is an example

    LI1  dx = dz W
    LI2  dW = dzᵀ x               summed over all examples, as rows of one matrix
    LI3  db = Σ dz

It is BP2 to BP4 of the perceptron, without the activation. Raises ValueError for shapes that do not fit.
Source: Nielsen, chapter 2.
"""

from collections.abc import Iterator

import torch
from torch import Generator, Tensor

EQUATIONS = ("LI1", "LI2", "LI3")

Cache = tuple[Tensor, Tensor]


def forward(x: Tensor, W: Tensor, b: Tensor) -> tuple[Tensor, Cache]:
    if W.dim() != 2 or x.shape[-1:] != W.shape[1:] or b.shape != W.shape[:1]:
        raise ValueError(
            f"x is {tuple(x.shape)}, W {tuple(W.shape)} and b {tuple(b.shape)}: give (…, I), (O, I) and (O,)"
        )
    z = torch.addmm(b, x.reshape(-1, W.shape[1]), W.T)
    return z.view(*x.shape[:-1], len(W)), (x, W)


def backward(dz: Tensor, cache: Cache) -> tuple[Tensor, Tensor, Tensor]:
    x, W = cache
    rows = dz.reshape(-1, len(W))
    dx = dz @ W  # LI1
    dW = rows.T @ x.reshape(-1, W.shape[1])  # LI2
    db = rows.sum(dim=0)  # LI3
    return dx, dW, db


def examples(generator: Generator, dtype: torch.dtype = torch.float64) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    for shape, out in (((7, 5), 3), ((3, 2, 4), 5)):
        sizes = (shape, (out, shape[-1]), (out,))
        x, W, b = (torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for size in sizes)
        yield x, W, b
