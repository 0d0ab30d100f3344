"""Parametric ReLU: a = z for z > 0, else α z, with a learned slope α for each channel, or one for all.

    z, a (B, C, …); α (C,) or (1,)

    PR1  dz = da for z > 0, else α da
    PR2  dα = Σ min(z, 0) da               over the batch and all places, for one α over the channels too

At z = 0 the slope is the one from the left, α, as torch has it. Raises ValueError for another shape of α.
Source: He et al. 2015.
"""

from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from manual_backprop.layers.standardize import channel_sums, per_channel

EQUATIONS = ("PR1", "PR2")

Cache = tuple[Tensor, Tensor]


def forward(z: Tensor, alpha: Tensor) -> tuple[Tensor, Cache]:
    if z.dim() < 2 or alpha.shape not in ((1,), z.shape[1:2]):
        raise ValueError(f"z is {tuple(z.shape)} and α {tuple(alpha.shape)}: give (B, C, …) and (C,) or (1,)")
    a = torch.where(z > 0, z, per_channel(alpha, z) * z)
    return a, (z, alpha)


def backward(da: Tensor, cache: Cache) -> tuple[Tensor, Tensor]:
    z, alpha = cache
    dz = torch.where(z > 0, da, per_channel(alpha, z) * da)  # PR1
    dalpha = channel_sums(z.clamp(max=0) * da).sum_to_size(alpha.shape)  # PR2
    return dz, dalpha


def examples(generator: Generator, dtype: torch.dtype = torch.float64) -> Iterator[tuple[Tensor, Tensor]]:
    for shape, slopes in (((7, 5), 5), ((3, 4, 2, 5), 4), ((2, 3, 5), 1)):
        z = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
        alpha = 0.1 + torch.rand(slopes, generator=generator, dtype=torch.float64)
        yield (z + 0.05 * z.sign()).to(dtype), alpha.to(dtype)
