"""Known mistakes in backward passes and optimizers, each beside the right one: a check must reject them all."""

from gallery import (
    affine,
    attention,
    convolution,
    diagnosed,
    diagnosed_terms,
    elementwise,
    fed,
    losses,
    memory,
    normalization,
    optimizers,
    perceptron,
    recurrent,
)
from gallery.entry import ENTRIES, OWN, Entry, Wrong, WrongRule, named, verdict
from gallery.perceptron import WrongModel

__all__ = [
    "ENTRIES",
    "OWN",
    "Entry",
    "Wrong",
    "WrongModel",
    "WrongRule",
    "affine",
    "attention",
    "convolution",
    "diagnosed",
    "diagnosed_terms",
    "elementwise",
    "fed",
    "losses",
    "memory",
    "named",
    "normalization",
    "optimizers",
    "perceptron",
    "recurrent",
    "verdict",
]
