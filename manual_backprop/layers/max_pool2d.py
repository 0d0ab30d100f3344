"""Max pooling: y[…,u,v] = max_i,j x̄[…,s·u+i,s·v+j], the largest pixel of each window

    x (…, H, W), y (…, H′, W′)
    x̄ is x with `padding` times −∞ on every side, s the stride (that of the kernel if left out); numbers or pairs

    MP1  dx̄[…,p,q] = Σ dy[…,u,v]         over all windows u, v whose largest pixel is p, q

Of several that are equal it is the first, row by row; NaN counts as largest. With `ceil_mode` windows may stick out
behind. Raises ValueError for a kernel that does not fit and a padding of more than half of it.
Source: Riesenhuber and Poggio 1999.
"""

from collections.abc import Iterator, Sequence
from functools import reduce
from itertools import product
from math import inf
from typing import Any

import torch
from torch import Generator, Tensor

from manual_backprop.layers.windows import Pair, every, framed, pair, pooled

Cache = tuple[Tensor, torch.Size, Pair, Pair]


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
    padded = framed(x, (pw, pw + behind, ph, ph + below), -inf)
    width = padded.shape[-1]
    views = [padded[..., every(i, sh, rows), every(j, sw, columns)] for i, j in product(range(kh), range(kw))]
    windows = [view.clone() for view in views]  # dense, because each is read several times
    largest = reduce(torch.maximum, windows)
    corner = torch.arange(rows, device=x.device).unsqueeze(1) * sh * width + torch.arange(columns, device=x.device) * sw
    place = torch.zeros_like(largest, dtype=torch.int64) + corner  # in the flat image; moves on to the largest pixel
    missed = torch.ones_like(largest, dtype=torch.bool)
    for k, pixel in enumerate(windows[:-1], start=1):
        missed = missed & (pixel != largest) & ~pixel.isnan()
        place.add_(missed, alpha=1 if k % kw else width - kw + 1)
    return largest, (place, padded.shape, (ph, pw), (x.shape[-2], x.shape[-1]))


def backward(dy: Tensor, cache: Cache) -> Tensor:
    place, shape, (ph, pw), (height, width) = cache
    below, behind = shape[-2] - dy.shape[-2], shape[-1] - dy.shape[-1]
    dx = torch.constant_pad_nd(dy, (0, behind, 0, below + 1)).zero_()  # channels last if dy is; never dy's own strides
    dx.flatten(-2).scatter_add_(-1, place.flatten(-2), dy.flatten(-2))  # MP1, into dx: flatten gives a view
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
