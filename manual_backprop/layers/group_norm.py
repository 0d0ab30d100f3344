"""Group normalization: the channels in groups, each group of each example to mean 0 and variance 1, then scaled.

    x̂ = (x − μ) / σ,  y = γ x̂ + β          x, y (B, C, …); γ, β (C,), one per channel; G groups of C/G channels
    μ and σ² = variance + ε (B, G) are taken over the channels of a group and all places

    GN1  dβ = Σ dy                          Σ over the batch and all places
    GN2  dγ = Σ dy ⊙ x̂
    GN3  dx = (1/σ) (dx̂ − mean(dx̂) − x̂ mean(dx̂ ⊙ x̂))         dx̂ = γ dy, means as for μ

One group is layer normalization with a γ per channel, C groups are instance normalization. Raises ValueError for groups
that do not divide the channels and vectors that do not fit them. Source: Wu and He 2018.
"""

from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from manual_backprop.layers.standardize import channel_sums, per_channel, standardize

EQUATIONS = ("GN3", "GN2", "GN1")

Cache = tuple[Tensor, Tensor, Tensor]


def forward(x: Tensor, gamma: Tensor, beta: Tensor, groups: int, eps: float = 1e-5) -> tuple[Tensor, Cache]:
    if x.dim() < 2 or gamma.shape != x.shape[1:2] or beta.shape != x.shape[1:2]:
        raise ValueError(
            f"x is {tuple(x.shape)}, γ {tuple(gamma.shape)} and β {tuple(beta.shape)}: give (B, C, …), (C,) and (C,)"
        )
    if groups < 1 or x.shape[1] % groups:
        raise ValueError(f"{groups} groups for {x.shape[1]} channels: give a divisor")
    grouped, _, _, sigma = standardize(by_group(x, groups), [2], eps)  # σ (B, G, 1)
    xhat = grouped.view(x.shape)
    y = per_channel(gamma, x) * xhat + per_channel(beta, x)
    return y, (xhat, sigma, gamma)


def backward(dy: Tensor, cache: Cache) -> tuple[Tensor, Tensor, Tensor]:
    xhat, sigma, gamma = cache
    dbeta = channel_sums(dy)  # GN1
    dgamma = channel_sums(dy * xhat)  # GN2
    dxhat, grouped = (by_group(v, sigma.shape[1]) for v in (per_channel(gamma, dy) * dy, xhat))
    mean, product = dxhat.mean(dim=2, keepdim=True), (dxhat * grouped).mean(dim=2, keepdim=True)
    dx = (dxhat - mean - grouped * product) / sigma  # GN3
    return dx.view(dy.shape), dgamma, dbeta


def by_group(x: Tensor, groups: int) -> Tensor:
    """(B, groups, all values of a group)"""
    return x.unflatten(1, (groups, -1)).flatten(2)


def examples(generator: Generator, dtype: torch.dtype = torch.float64) -> Iterator[tuple[Tensor | int | float, ...]]:
    for shape, groups, *options in (((3, 4, 2, 5), 2), ((2, 3, 4, 3), 3, 1e-3), ((5, 8), 2)):
        x = 1.5 * torch.randn(shape, generator=generator, dtype=torch.float64) - 0.7
        gamma, beta = (0.4 + torch.rand(shape[1], generator=generator, dtype=torch.float64) for _ in range(2))
        yield *(tensor.to(dtype) for tensor in (x, gamma, -beta)), groups, *options
