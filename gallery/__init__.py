"""Known mistakes in backward passes and optimizers, each beside the right one: a check must reject them all."""

from gallery import (
    affine,
    attention,
    convolution,
    elementwise,
    losses,
    memory,
    normalization,
    optimizers,
    recurrent,
)
from gallery.entry import ENTRIES, Wrong, WrongRule, named, verdict

__all__ = [
    "ENTRIES",
    "Wrong",
    "WrongRule",
    "affine",
    "attention",
    "convolution",
    "elementwise",
    "losses",
    "memory",
    "named",
    "normalization",
    "optimizers",
    "recurrent",
    "verdict",
]
