"""Batch normalization: every channel to mean 0 and variance 1 over the batch and all places, then scaled and shifted.

    x̂ = (x − μ) / σ,  y = γ x̂ + β         x, y (B, C, …); γ, β, μ, σ (C,); σ² = variance + ε; n values per channel

    BN1  dβ = Σ dy                         Σ over the batch and all places
    BN2  dγ = Σ dy ⊙ x̂
    BN3  dx = (γ/σ) (dy − dβ/n − x̂ dγ/n)

`forward` is for training. It also returns the new running statistics, (1 − momentum) old + momentum new, whose variance
is the one with n − 1, as torch keeps it. `evaluate` takes these for μ and σ², so that no example depends on the others:

    BN4  dx = (γ/σ) dy                     `evaluation` is that layer, of `evaluate` and `backward_of_evaluate`

Raises ValueError for vectors that do not fit the channels and, in training, for fewer than two values per channel.
Source: Ioffe and Szegedy 2015.
"""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Generator, Tensor

from manual_backprop.layers.standardize import channel_sums, per_channel, standardize

EQUATIONS = ("BN3", "BN2", "BN1")
not_differentiable = ("running_mean", "running_var")

Cache = tuple[Tensor, Tensor, Tensor]


def forward(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Tensor, Cache, Tensor, Tensor]:
    """y, cache, the new running mean and variance."""
    check(x, gamma, beta, running_mean, running_var)
    n = x[:, 0].numel()
    if n < 2:
        raise ValueError(f"x is {tuple(x.shape)}, {n} to a channel, which has no variance: give at least 2")
    xhat, *statistics = standardize(x, [0, *range(2, x.dim())], eps)
    mu, variance, sigma = (statistic.view(-1) for statistic in statistics)
    y = torch.addcmul(per_channel(beta, x), per_channel(gamma, x), xhat)
    new_mean = (1 - momentum) * running_mean + momentum * mu
    new_var = (1 - momentum) * running_var + (momentum * n / (n - 1) * variance).to(running_var.dtype)
    return y, (xhat, sigma, gamma), new_mean, new_var


def backward(dy: Tensor, cache: Cache) -> tuple[Tensor, Tensor, Tensor]:
    xhat, sigma, gamma = cache
    n = dy[:, 0].numel()
    dbeta = channel_sums(dy)  # BN1
    dgamma = channel_sums(dy * xhat)  # BN2
    # BN3  dx = (gamma / sigma) * (dy - dbeta / n - xhat * dgamma / n), with both signs turned, and in place for speed:
    means = torch.addcmul(per_channel(dbeta / n, dy), xhat, per_channel(dgamma / n, dy))  # dβ/n + x̂ dγ/n
    dx = means.sub_(dy).mul_(per_channel(-gamma / sigma, dy))
    return dx, dgamma, dbeta


def evaluate(
    x: Tensor, gamma: Tensor, beta: Tensor, running_mean: Tensor, running_var: Tensor, eps: float = 1e-5
) -> tuple[Tensor, Cache]:
    check(x, gamma, beta, running_mean, running_var)
    sigma = torch.sqrt(running_var + eps)
    xhat = (x - per_channel(running_mean, x)) / per_channel(sigma, x)
    y = torch.addcmul(per_channel(beta, x), per_channel(gamma, x), xhat)
    return y, (xhat, sigma, gamma)


def backward_of_evaluate(dy: Tensor, cache: Cache) -> tuple[Tensor, Tensor, Tensor]:
    xhat, sigma, gamma = cache
    dbeta = channel_sums(dy)  # BN1
    dgamma = channel_sums(dy * xhat)  # BN2
    dx = per_channel(gamma / sigma, dy) * dy  # BN4
    return dx, dgamma, dbeta


evaluation = SimpleNamespace(
    name="batch_norm",
    twin="batch_norm_evaluation",
    EQUATIONS=("BN4", "BN2", "BN1"),
    forward=evaluate,
    backward=backward_of_evaluate,
    not_differentiable=not_differentiable,
)


def check(x: Tensor, *vectors: Tensor) -> None:
    if x.dim() < 2 or any(v.shape != x.shape[1:2] for v in vectors):
        shapes = ", ".join(str(tuple(v.shape)) for v in vectors)
        raise ValueError(f"x is {tuple(x.shape)}, γ, β, mean and variance are {shapes}: give (B, C, …) and (C,)")


def examples(generator: Generator, dtype: torch.dtype = torch.float64) -> Iterator[tuple[Any, ...]]:
    """Its own arguments, and pairs of `evaluation` and the arguments of that."""
    for shape, *options in (((7, 5),), ((3, 4, 2, 5), 0.3, 1e-3), ((5, 2, 3, 4), 0.25)):
        x = 1.5 * torch.randn(shape, generator=generator, dtype=torch.float64) - 0.7
        draws = (0.4 + torch.rand(shape[1], generator=generator, dtype=torch.float64) for _ in range(4))
        gamma, beta, mean, var = draws
        tensors = tuple(tensor.to(dtype) for tensor in (x, gamma, -beta, mean, var))
        yield *tensors, *options
        yield evaluation, (*tensors, *options[1:])
