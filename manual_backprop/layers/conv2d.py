"""Convolution: z[b,o,u,v] = Σ_c,i,j W[o,c,i,j] x̄[b,c,s·u+d·i,s·v+d·j] + b[o]

    x (B, C, H, W), W (O, C/groups, kh, kw), b (O,) or None, z (B, O, H′, W′)
    x̄ is x with `padding` zeros on every side; s is the stride, d the dilation; all of them are numbers or pairs
    H′ = ⌊(H + 2·padding − d·(kh − 1) − 1)/s⌋ + 1; with groups, each share of the outputs sees its share of the channels

    CV1  dx̄[b,c,p,q] = Σ_o,i,j dz[b,o,u,v] W[o,c,i,j]         over all u, v with s·u + d·i = p, s·v + d·j = q
    CV2  dW[o,c,i,j] = Σ_b,u,v dz[b,o,u,v] x̄[b,c,s·u+d·i,s·v+d·j]
    CV3  db[o] = Σ_b,u,v dz[b,o,u,v]

CV1 is a transposed convolution, and dx is what it gives inside of the padding. CV2 is a matrix product for every row of
the kernel. Raises ValueError for shapes that do not fit, groups that do not divide, and a kernel larger than the padded
image. Sources: LeCun et al. 1998; Dumoulin and Visin 2016.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from manual_backprop.layers.windows import Pair, pair, strided

TOGETHER = 64  # images of whose windows copies are made at a time, few enough for the processor's cache

EQUATIONS = ("CV1", "CV2", "CV3")

Cache = tuple[Tensor, Tensor, bool, Pair, Pair, Pair, int]


def forward(
    x: Tensor,
    W: Tensor,
    b: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> tuple[Tensor, Cache]:
    stride, padding, dilation = pair("stride", stride, 1), pair("padding", padding, 0), pair("dilation", dilation, 1)
    check(x, W, b, padding, dilation, groups)
    z = torch.conv2d(x, W, b, stride, padding, dilation, groups)
    return z, (x, W, b is not None, stride, padding, dilation, groups)


def backward(dz: Tensor, cache: Cache, need_dx: bool = True) -> tuple[Any, ...]:
    """dx (None unless `need_dx`), dW and, if there was a bias, db."""
    x, W, with_b, stride, padding, dilation, groups = cache
    unseen = [behind(x.shape[2 + i], W.shape[2 + i], padding[i], dilation[i]) % stride[i] for i in (0, 1)]
    dx = torch.conv_transpose2d(dz, W, None, stride, padding, unseen, groups, dilation) if need_dx else None  # CV1
    geometry = (W.shape[2:], stride, padding, dilation, groups)
    dW = sum(map(lambda d, v: weight_gradient(d, v, *geometry), dz.split(TOGETHER), x.split(TOGETHER)))  # CV2
    if not with_b:
        return dx, dW
    db = dz.sum(dim=(0, 2, 3))  # CV3
    return dx, dW, db


def weight_gradient(
    dz: Tensor, x: Tensor, kernel: Sequence[int], stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Tensor:
    """CV2, one matrix product for each row i of the kernel; the places u, b, v are summed over as one index.

    Channels come last and the row of the image first, so that what row i of the kernel sees is a slice.
    """
    (kh, kw), rows = kernel, dz.shape[2]
    (ph, pw), (sh, sw), (dh, dw) = padding, stride, dilation
    lines = x.unflatten(1, (groups, -1)).permute(1, 3, 0, 4, 2)  # (groups, H, B, W, C/groups)
    lines = torch.constant_pad_nd(lines, (0, 0, pw, pw, 0, 0, ph, ph))
    windows = lines.unfold(3, dw * (kw - 1) + 1, sw)[..., ::dw]  # (groups, H, B, W′, C/groups, kw), a view
    seen = windows.mT.contiguous().flatten(4)  # (…, W′, kw·C/groups)
    delta = dz.unflatten(1, (groups, -1)).permute(1, 3, 0, 4, 2).flatten(1, 3)  # (groups, H′·B·W′, O/groups)
    dW = [product(delta, seen[:, strided(dh * i, sh, rows)].flatten(1, 3)) for i in range(kh)]
    return torch.stack(dW, dim=2).flatten(0, 1).unflatten(2, (kw, -1)).permute(0, 3, 1, 2)


def product(a: Tensor, b: Tensor) -> Tensor:
    """aᵀ b = (bᵀ a)ᵀ, the one with fewer rows than columns: of a long sum it is made up to five times as fast."""
    return a.mT @ b if a.shape[-1] <= b.shape[-1] else (b.mT @ a).mT


def behind(length: int, kernel: int, padding: int, dilation: int) -> int:
    """The places of the padded image behind its first window."""
    return length + 2 * padding - dilation * (kernel - 1) - 1


def check(x: Tensor, W: Tensor, b: Tensor | None, padding: Pair, dilation: Pair, groups: int) -> None:
    if x.dim() != 4 or W.dim() != 4:
        raise ValueError(f"x is {tuple(x.shape)} and W {tuple(W.shape)}: give (B, C, H, W) and (O, C/groups, kh, kw)")
    channels, out = x.shape[1], len(W)
    if groups < 1 or channels % groups or out % groups:
        raise ValueError(f"{groups} groups for {channels} channels and {out} outputs: give a divisor of both")
    if W.shape[1] * groups != channels:
        raise ValueError(f"W sees {W.shape[1]} channels and x has {channels // groups} per group: give W as many")
    if b is not None and b.shape != (out,):
        raise ValueError(f"b is {tuple(b.shape)}: give ({out},), a number for each output of W")
    for i in (0, 1):
        n, k, p, d = x.shape[2 + i], W.shape[2 + i], padding[i], dilation[i]
        if behind(n, k, p, d) < 0:
            raise ValueError(
                f"a kernel of {k}, dilated by {d}, does not fit into {n} places padded by {p}: make it smaller"
            )


def examples(generator: Generator, dtype: torch.dtype = torch.float64) -> Iterator[tuple[Any, ...]]:
    for x_shape, W_shape, *options in (
        ((2, 3, 7, 6), (4, 3, 3, 2)),
        ((3, 2, 8, 9), (5, 2, 3, 5), (2, 3), (1, 2)),
        ((2, 4, 9, 7), (6, 2, 2, 3), (3, 2), (0, 1), (2, 1), 2),
        ((3, 5, 6, 4), (10, 1, 3, 2), 2, 1, (1, 2), 5),
    ):
        x, W = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in (x_shape, W_shape))
        b = torch.randn(len(W), generator=generator, dtype=torch.float64).to(dtype)
        yield x, W, b, *options
        yield x, W, None, *options
