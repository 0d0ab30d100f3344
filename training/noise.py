"""Noise of training steps: a pure function of seed and step, the same for every implementation."""

from collections.abc import Sequence
from hashlib import blake2b

import torch
from torch import Tensor

from training.learners.base import Noise


def dropout_masks(widths: Sequence[int], dropout: float, seed: int) -> Noise:
    """Masks (B, n) for layers of these widths, zeros with probability `dropout`, else ones."""

    def draw(steps: int, x: Tensor) -> tuple[Tensor, ...]:
        own = int.from_bytes(blake2b(f"{seed} {steps}".encode(), digest_size=8).digest())  # this step's own seed
        generator = torch.Generator().manual_seed(own)
        masks = (torch.rand(len(x), width, generator=generator) >= dropout for width in widths)
        return tuple(mask.to(x.device, x.dtype) for mask in masks)

    return draw
