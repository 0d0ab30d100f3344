"""The mean over all places of an image: a[b,c] = (1/HW) Σ_{h,w} x[b,c,h,w]

dx[b,c,h,w] = da[b,c] / HW
"""

from collections.abc import Iterator

import torch
from torch import Generator, Tensor


def forward(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.mean(dim=(2, 3)), x


def backward(da: Tensor, cache: Tensor) -> Tensor:
    x = cache
    return (da / (x.shape[2] * x.shape[3])).unsqueeze(2).unsqueeze(3).expand_as(x)


def examples(generator: Generator, dtype: torch.dtype = torch.float64) -> Iterator[tuple[Tensor]]:
    yield (torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64).to(dtype),)
