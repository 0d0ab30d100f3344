"""Average pooling: y[…,u,v] = (1/n) Σ_i,j x̄[…,s·u+i,s·v+j], the mean of each window

    x (…, H, W), y (…, H′, W′)
    x̄ is x with `padding` zeros on every side, s the stride (that of the kernel if left out); numbers or pairs
    n = n_u n_v is the size of the window, padding included; one that sticks out behind it (`ceil_mode`) is smaller

    AP1  dx̄[…,p,q] = Σ dy[…,u,v]/n         over all windows u, v that see p, q

Raises ValueError for a kernel that does not fit and a padding of more than half of it. Source: LeCun et al. 1989.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import torch
from torch import Generator, Tensor

from manual_backprop.layers.windows import Pair, pad, pair, pooled, strided

EQUATIONS = ("AP1",)

Cache = tuple[Tensor, torch.Size, Pair, Pair, Pair, Pair]


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
    padded = pad(x, (pw, pw + behind, ph, ph + below))
    n_u = seen(x, rows, kh, sh, padded.shape[-2] - below)
    n_v = seen(x, columns, kw, sw, padded.shape[-1] - behind)
    n = n_u.unsqueeze(1) * n_v
    total = sum(padded[..., strided(i, sh, rows), strided(j, sw, columns)] for i, j in product(range(kh), range(kw)))
    return total / n, (n, padded.shape, (kh, kw), (sh, sw), (ph, pw), (x.shape[-2], x.shape[-1]))


def backward(dy: Tensor, cache: Cache) -> Tensor:
    n, shape, (kh, kw), (sh, sw), (ph, pw), (height, width) = cache
    rows, columns = dy.shape[-2:]
    share = dy / n
    dx = dy.new_zeros(shape)
    for i, j in product(range(kh), range(kw)):
        dx[..., strided(i, sh, rows), strided(j, sw, columns)] += share  # AP1
    return dx[..., ph : ph + height, pw : pw + width]


def seen(x: Tensor, count: int, kernel: int, stride: int, length: int) -> Tensor:
    """Of each of `count` windows, how many of its places lie within `length`; on x's device."""
    begin = stride * torch.arange(count, device=x.device)
    return (length - begin).clamp(max=kernel)


def examples(generator: Generator, dtype: torch.dtype = torch.float64) -> Iterator[tuple[Any, ...]]:
    for shape, *options in (
        ((2, 3, 6, 8), 2),
        ((3, 2, 7, 5), (3, 2), (2, 1), (1, 0)),
        ((2, 3, 7, 8), 3, 2, (0, 1), True),
        ((4, 5, 9), (2, 3), (3, 4), 1, True),
    ):
        yield torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype), *options
