"""Adaptive average pooling: y = A x Bᵀ, means over as many windows as are asked for

    x (…, H, W), y (…, H′, W′) with (H′, W′) = size, a number or a pair; 1 is global average pooling
    A (H′, H) and B (W′, W): row u of A is 1/n_u from place ⌊u H/H′⌋ to before ⌈(u + 1) H/H′⌉, which are n_u, and else 0

    AA1  dx = Aᵀ dy B

In code A = a/n_u with a of zeros and ones. Raises ValueError for a size below 1 and an empty image.
Source: Lin, Chen and Yan 2014 (global average pooling).
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from manual_backprop.layers.windows import pair

EQUATIONS = ("AA1",)

Cache = tuple[Tensor, Tensor, Tensor]


def forward(x: Tensor, size: int | Sequence[int]) -> tuple[Tensor, Cache]:
    rows, columns = pair("size", size, 1)
    if x.dim() < 2 or x.shape[-2] < 1 or x.shape[-1] < 1:
        raise ValueError(f"x is {tuple(x.shape)}: give images (…, H, W) of at least one pixel")
    a, b = seen(x, x.shape[-2], rows), seen(x, x.shape[-1], columns)
    n = a.sum(dim=1, keepdim=True) * b.sum(dim=1)
    y = a @ x @ b.T / n
    return y, (a, b, n)


def backward(dy: Tensor, cache: Cache) -> Tensor:
    a, b, n = cache
    return a.T @ (dy / n) @ b  # AA1


def seen(x: Tensor, length: int, count: int) -> Tensor:
    """(count, length): 1 where the window sees the place, else 0; of x's dtype and device."""
    window = torch.arange(count, device=x.device).unsqueeze(1)
    place = torch.arange(length, device=x.device)
    begin, end = window * length // count, ((window + 1) * length + count - 1) // count
    return ((begin <= place) & (place < end)).to(x.dtype)


def examples(generator: Generator, dtype: torch.dtype = torch.float64) -> Iterator[tuple[Any, ...]]:
    for shape, size in (((2, 3, 4, 5), 1), ((3, 2, 7, 5), (3, 2)), ((4, 3, 5), (2, 7))):
        yield torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype), size
