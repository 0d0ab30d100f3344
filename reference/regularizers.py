"""The twins of manual_backprop/regularizers.py and clipping.py."""

import torch
from torch import nn

from reference.norm import norm


def prepare_gradients(module: nn.Module, l1: float, clip_norm: float, clip_value: float) -> None:
    """Add the gradient of the penalty l1 Σ|w| to every `grad`, then clip; 0 is not at all."""
    if l1:
        weights = [p for p in module.parameters() if p.ndim > 1]
        (l1 * torch.stack([w.abs().sum() for w in weights]).sum()).backward()
    if clip_norm:
        length = norm(torch.stack([norm(p.grad) for p in module.parameters() if p.grad is not None]))
        nn.utils.clip_grads_with_norm_(module.parameters(), clip_norm, length)
    if clip_value:
        for p in module.parameters():
            if p.grad is not None:
                p.grad.masked_fill_(p.grad.isinf(), torch.nan)  # clamping would hide it
        nn.utils.clip_grad_value_(module.parameters(), clip_value)


@torch.no_grad()
def max_norm(module: nn.Module, limit: float) -> None:
    """No neuron's incoming weights are longer than `limit`."""
    for p in module.parameters():
        if p.ndim > 1:
            dims = tuple(range(1, p.ndim))
            norms = norm(p, dims)
            p.mul_(torch.where(norms > limit, limit / norms, 1.0))
