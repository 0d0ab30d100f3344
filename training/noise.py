"""Noise of training steps: a pure function of seed and step, the same for every implementation."""

from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

Noise = Callable[[int, Tensor], Any]  # (steps taken, x) → `noise` for the model's forward; the same for the same steps


def step_generator(seed: int, steps: int, what: str = "") -> torch.Generator:
    """A CPU generator for what is drawn in this step, independent of other steps', seeds' and those named otherwise."""
    key = f"{seed} {steps} {what}".rstrip()  # dropout's masks have no name, and recorded figures depend on them
    return torch.Generator().manual_seed(int.from_bytes(blake2b(key.encode(), digest_size=8).digest()))


def dropout_masks(widths: Sequence[int], dropout: float, seed: int) -> Noise:
    """Masks (B, n) for layers of these widths, zeros with probability `dropout`, else ones."""

    def draw(steps: int, x: Tensor) -> tuple[Tensor, ...]:
        generator = step_generator(seed, steps)
        masks = (torch.rand(len(x), width, generator=generator) >= dropout for width in widths)
        return tuple(mask.to(x.device, x.dtype) for mask in masks)

    return draw
