"""Clipping: a gradient that is too long is shortened before the step (Pascanu et al. 2013)."""

import torch
from torch import Tensor

from manual_backprop.norm import norm


def by_norm(gradient: Tensor, limit: float) -> Tensor:
    """g min(1, limit / (‖g‖ + 10⁻⁶)): all of g in its direction, no longer than `limit` (torch's convention)."""
    return gradient * (limit / (norm(gradient) + 1e-6)).clamp(max=1)


def by_value(gradient: Tensor, limit: float) -> Tensor:
    """Every element to [−limit, limit]. Infinity becomes NaN, so that it is noticed and not hidden."""
    return torch.where(gradient.isfinite(), gradient.clamp(-limit, limit), torch.nan)
