"""Noise of training steps: a pure function of seed, step and call, the same for every implementation."""

from collections.abc import Callable
from hashlib import blake2b

import torch
from torch import Tensor

from manual_backprop.tape import Noise

StepNoise = Callable[[int, torch.device, torch.dtype], Noise]  # (steps taken, …) → the noise of the step after them


def step_generator(seed: int, steps: int, what: str) -> torch.Generator:
    """A CPU generator for what is drawn in this step, independent of other steps', seeds' and those named otherwise."""
    key = f"{seed} {steps} {what}"
    return torch.Generator().manual_seed(int.from_bytes(blake2b(key.encode(), digest_size=8).digest()))


def dropout_noise(seed: int) -> StepNoise:
    """Masks of ones, with probability `keep`, and zeros; the same for the same seed, step and call."""

    def noise(steps: int, device: torch.device, dtype: torch.dtype) -> Noise:
        def draw(call: str, shape: tuple[int, ...], keep: float) -> Tensor:
            mask = torch.rand(shape, generator=step_generator(seed, steps, call)) < keep
            return mask.to(device, dtype)

        return draw

    return noise
