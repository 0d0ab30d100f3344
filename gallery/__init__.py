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
    noticed,
    optimizers,
    parts,
    perceptron,
    recurrent,
    steps,
)
from gallery.entry import ENTRIES, OWN, Entry, Wrong, WrongRule, named, verdict
from gallery.noticed import NOTICED, WrongLesson
from gallery.perceptron import WrongModel
from gallery.steps import STEPS, WrongStep

__all__ = [
    "ENTRIES",
    "NOTICED",
    "OWN",
    "STEPS",
    "Entry",
    "Wrong",
    "WrongLesson",
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
    "noticed",
    "optimizers",
    "parts",
    "perceptron",
    "recurrent",
    "steps",
    "verdict",
]
