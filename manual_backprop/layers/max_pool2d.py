"""Max pooling: y[…,u,v] = max_i,j x̄[…,s·u+i,s·v+j], the largest pixel of each window

    x (…, H, W), y (…, H′, W′)
    x̄ is x with `padding` times −∞ on every side, s the stride (that of the kernel if left out); numbers or pairs

    MP1  dx̄[…,p,q] = Σ dy[…,u,v]         over all windows u, v whose largest pixel is p, q

Of several that are equal it is the first, row by row; beside NaN, which counts as largest, it is the last. With
`ceil_mode` windows may stick out behind. Raises ValueError for a kernel that does not fit and a padding of more than
half of it. Source: Riesenhuber and Poggio 1999.
"""

from collections.abc import Iterator, Sequence
from functools import reduce
from itertools import product
from math import inf
from typing import Any

import torch
from torch import Generator, Tensor

from manual_backprop.layers.windows import Pair, pad, pair, pooled, strided

EQUATIONS = ("MP1",)

Cache = tuple[list[Tensor], Tensor, Pair, Pair, Pair, Pair]


def forward(
    x: Tensor,
    kernel: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    ceil_mode: bool = False,
) -> tuple[Tensor, Cache]:
    (kh, kw), (ph, pw) = pair("kernel", kernel, 1), pair("padding", padding, 0)
    sh, sw = pair("stride", kernel if stride is None else stride, 1)
    rows, below = pooled(x.shape[-2], kh, sh, ph, ceil_mode)
    columns, behind = pooled(x.shape[-1], kw, sw, pw, ceil_mode)
    padded = pad(x, (pw, pw + behind, ph, ph + below), -inf)
    seen = [padded[..., strided(i, sh, rows), strided(j, sw, columns)] for i, j in product(range(kh), range(kw))]
    pixels = [view.clone() for view in seen]  # dense, because each is read several times
    y = reduce(torch.maximum, pixels)
    largest, left = [], torch.ones_like(y, dtype=torch.bool)
    for pixel in pixels[:-1]:
        largest.append(left & (pixel == y))
        left = left & ~largest[-1]
    empty = torch.empty_like(padded, device="meta")  # its shape and order in memory, without the memory
    return y, ([*largest, left], empty, (kh, kw), (sh, sw), (ph, pw), (x.shape[-2], x.shape[-1]))


def backward(dy: Tensor, cache: Cache) -> Tensor:
    largest, empty, (kh, kw), (sh, sw), (ph, pw), (height, width) = cache
    rows, columns = dy.shape[-2:]
    dx = torch.zeros_like(empty, device=dy.device)
    for k, (i, j) in enumerate(product(range(kh), range(kw))):
        dx[..., strided(i, sh, rows), strided(j, sw, columns)] += dy * largest[k]  # MP1
    return dx[..., ph : ph + height, pw : pw + width]


def examples(generator: Generator, dtype: torch.dtype = torch.float64) -> Iterator[tuple[Any, ...]]:
    for shape, *options in (
        ((2, 3, 6, 8), 2),
        ((3, 2, 7, 5), (3, 2), (2, 1), (1, 0)),
        ((2, 3, 7, 8), 3, 2, (0, 1), True),
        ((4, 5, 9), (2, 3), (3, 4), 1, True),
    ):
        n = torch.Size(shape).numel()
        x = (torch.randperm(n, generator=generator).double() / n - 0.5) * 3  # no two are near each other
        yield x.view(shape).to(dtype), *options
