"""Batch normalization of images: every channel to mean 0 and variance 1 over the batch and all places, then scaled.

    x̂ = (z − μ) / σ,  y = γ x̂ + β              z, y (B, C, H, W); γ, β, μ, σ (C,); σ² = variance + 1e-5

    dz = (1/σ) (dx̂ − mean(dx̂) − x̂ mean(dx̂ ⊙ x̂))   with dx̂ = γ dy
    dγ = Σ_{b,h,w} dy ⊙ x̂
    dβ = Σ_{b,h,w} dy

The running statistics are averages that forget (momentum 0.1), of the variance with n − 1, as torch keeps them.
Source: Ioffe and Szegedy 2015.
"""

from collections.abc import Iterator

import torch
from torch import Generator, Tensor

EPSILON = 1e-5
MOMENTUM = 0.1
PLACES = (0, 2, 3)  # batch, height, width

not_differentiable = ("running_mean", "running_var")

Cache = tuple[Tensor, Tensor, Tensor]


def per_channel(v: Tensor) -> Tensor:
    return v.view(-1, 1, 1)


def forward(
    z: Tensor, gamma: Tensor, beta: Tensor, running_mean: Tensor, running_var: Tensor
) -> tuple[Tensor, Cache, Tensor, Tensor]:
    """For training: also returns the new running mean and variance."""
    n = z.numel() // z.shape[1]
    mu = z.mean(dim=PLACES)
    centered = z - per_channel(mu)
    var = (centered * centered).mean(dim=PLACES)
    rstd = 1 / torch.sqrt(var + EPSILON)
    xhat = centered * per_channel(rstd)
    y = per_channel(gamma) * xhat + per_channel(beta)
    new_mean = (1 - MOMENTUM) * running_mean + MOMENTUM * mu
    new_var = (1 - MOMENTUM) * running_var + MOMENTUM * var * (n / (n - 1))
    return y, (xhat, rstd, gamma), new_mean, new_var


def backward(dy: Tensor, cache: Cache) -> tuple[Tensor, Tensor, Tensor]:
    xhat, rstd, gamma = cache
    dxhat = per_channel(gamma) * dy
    mean_dxhat = dxhat.mean(dim=PLACES, keepdim=True)
    mean_dxhat_xhat = (dxhat * xhat).mean(dim=PLACES, keepdim=True)
    dz = per_channel(rstd) * (dxhat - mean_dxhat - xhat * mean_dxhat_xhat)
    dgamma = (dy * xhat).sum(dim=PLACES)
    dbeta = dy.sum(dim=PLACES)
    return dz, dgamma, dbeta


def evaluate(z: Tensor, gamma: Tensor, beta: Tensor, running_mean: Tensor, running_var: Tensor) -> Tensor:
    """With the running statistics, so that an example's result does not depend on the others of its batch."""
    xhat = (z - per_channel(running_mean)) / torch.sqrt(per_channel(running_var) + EPSILON)
    return per_channel(gamma) * xhat + per_channel(beta)


def examples(generator: Generator, dtype: torch.dtype = torch.float64) -> Iterator[tuple[Tensor, ...]]:
    for B, C, H, W in ((3, 4, 2, 5), (7, 2, 3, 4)):
        z = 1.5 * torch.randn(B, C, H, W, generator=generator, dtype=torch.float64) - 0.7
        gamma, beta, mean, var = (0.4 + torch.rand(C, generator=generator, dtype=torch.float64) for _ in range(4))
        yield tuple(tensor.to(dtype) for tensor in (z, gamma, -beta, mean, var))
