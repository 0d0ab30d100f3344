"""Convolution with stride 1 that keeps height and width (odd kernels, padded by half their size).

z[b,o] = Σ_i W[o,i] ⋆ x[b,i] + b[o]         x (B, I, H, W), W (O, I, kh, kw), b (O,), z (B, O, H, W)

dx[b,i] = Σ_o W[o,i] ∗ dz[b,o]              ⋆ correlates, ∗ convolves
dW[o,i] = Σ_b x[b,i] ⋆ dz[b,o]              each tap meets one patch of the padded x
db[o]   = Σ_{b,h,w} dz[b,o]
"""

from collections.abc import Iterator

import torch
from torch import Generator, Tensor

Cache = tuple[Tensor, Tensor]


def padding(W: Tensor) -> tuple[int, int]:
    return W.shape[2] // 2, W.shape[3] // 2


def forward(x: Tensor, W: Tensor, b: Tensor) -> tuple[Tensor, Cache]:
    return torch.conv2d(x, W, b, padding=padding(W)), (x, W)


def backward(dz: Tensor, cache: Cache, need_dx: bool = True) -> tuple[Tensor | None, Tensor, Tensor]:
    x, W = cache
    dx = torch.conv_transpose2d(dz, W, padding=padding(W)) if need_dx else None
    (h, w), (kh, kw) = padding(W), W.shape[2:]
    patches = torch.constant_pad_nd(x, (w, w, h, h)).unfold(2, kh, 1).unfold(3, kw, 1)  # (B, I, H, W, kh, kw)
    dW = torch.einsum("bohw,bihwkl->oikl", dz, patches)
    db = dz.sum(dim=(0, 2, 3))
    return dx, dW, db


def examples(generator: Generator, dtype: torch.dtype = torch.float64) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    for B, channels, out, H, width, kh, kw in ((2, 3, 4, 7, 6, 3, 5), (5, 2, 3, 4, 9, 5, 3)):
        sizes = ((B, channels, H, width), (out, channels, kh, kw), (out,))
        x, W, b = (torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for size in sizes)
        yield x, W, b
