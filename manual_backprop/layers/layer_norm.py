"""Layer normalization: every example (every place, if there are more dimensions) to mean 0 and variance 1, then scaled.

    x̂ = (x − μ) / σ,  y = γ ⊙ x̂ + β        γ, β of the shape of x's last dimensions; x, y (…, that shape)
    μ and σ² = variance + ε are taken over these last dimensions, one of each for every place of …

    LN1  dβ = Σ dy                          Σ over all places of …
    LN2  dγ = Σ dy ⊙ x̂
    LN3  dx = (1/σ) (dx̂ − mean(dx̂) − x̂ mean(dx̂ ⊙ x̂))         dx̂ = γ ⊙ dy, means as for μ

Raises ValueError if γ or β is not of that shape. Source: Ba, Kiros and Hinton 2016.
"""

from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from manual_backprop.layers.standardize import standardize

EQUATIONS = ("LN3", "LN2", "LN1")

Cache = tuple[Tensor, Tensor, Tensor]


def forward(x: Tensor, gamma: Tensor, beta: Tensor, eps: float = 1e-5) -> tuple[Tensor, Cache]:
    if gamma.dim() < 1 or gamma.shape != beta.shape or x.shape[-gamma.dim() :] != gamma.shape:
        raise ValueError(
            f"x is {tuple(x.shape)}, γ {tuple(gamma.shape)} and β {tuple(beta.shape)}: "
            "give γ and β of the shape of the last dimensions of x"
        )
    xhat, _, _, sigma = standardize(x, list(range(-gamma.dim(), 0)), eps)
    return gamma * xhat + beta, (xhat, sigma, gamma)


def backward(dy: Tensor, cache: Cache) -> tuple[Tensor, Tensor, Tensor]:
    xhat, sigma, gamma = cache
    last = list(range(-gamma.dim(), 0))
    dbeta = dy.reshape(-1, *gamma.shape).sum(dim=0)  # LN1
    dgamma = (dy * xhat).reshape(-1, *gamma.shape).sum(dim=0)  # LN2
    dxhat = gamma * dy
    mean, product = dxhat.mean(dim=last, keepdim=True), (dxhat * xhat).mean(dim=last, keepdim=True)
    dx = (dxhat - mean - xhat * product) / sigma  # LN3
    return dx, dgamma, dbeta


def examples(generator: Generator, dtype: torch.dtype = torch.float64) -> Iterator[tuple[Tensor | float, ...]]:
    for shape, dims, *options in (((7, 5), 1), ((2, 3, 4), 1, 1e-3), ((3, 2, 5), 2)):
        x = 1.5 * torch.randn(shape, generator=generator, dtype=torch.float64) - 0.7
        gamma, beta = (0.4 + torch.rand(shape[-dims:], generator=generator, dtype=torch.float64) for _ in range(2))
        yield *(tensor.to(dtype) for tensor in (x, gamma, -beta)), *options
