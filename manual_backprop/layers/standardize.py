"""What the normalizations share: x̂ = (x − μ)/σ over some dimensions, σ² = variance + ε."""

import torch
from torch import Tensor


def standardize(x: Tensor, dims: list[int], eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x̂, μ, the variance, and σ, the last three with size 1 in `dims`.

    Constant values come out as exactly 0: the mean of what is left of them takes away the rounding of μ, which 1/√ε
    would enlarge. Squares are made in float32 at least, so that in half precision a value of 1e4 is not too large.
    """
    mu = x.mean(dim=dims, keepdim=True)
    centered = x - mu
    centered -= centered.mean(dim=dims, keepdim=True)
    wide = centered.to(torch.promote_types(x.dtype, torch.float32))
    variance = (wide * wide).mean(dim=dims, keepdim=True)
    sigma = torch.sqrt(variance + eps).to(x.dtype)
    return centered / sigma, mu, variance, sigma


def per_channel(v: Tensor, x: Tensor) -> Tensor:
    """v (C,) as (C, 1, …), to go with x (B, C, …)."""
    return v.view(-1, *[1] * (x.dim() - 2))


def channel_sums(x: Tensor) -> Tensor:
    """(C,): the sums over all dimensions of x (B, C, …) but the channels'."""
    return x.sum(dim=[0, *range(2, x.dim())])
