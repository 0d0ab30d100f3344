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
    parts,
    perceptron,
    recurrent,
    steps,
)
from gallery.entry import ENTRIES, OWN, Entry, Wrong, WrongRule, named, verdict
from gallery.perceptron import WrongModel
from gallery.steps import STEPS, WrongStep

__all__ = [
    "ENTRIES",
    "OWN",
    "STEPS",
    "Entry",
    "Wrong",
    "WrongModel",
    "WrongRule",
    "WrongStep",
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
    "parts",
    "perceptron",
    "recurrent",
    "steps",
    "verdict",
]
