"""Known mistakes in backward passes and optimizers, each beside the right one: a check must reject them all."""

from gallery import (
    affine,
    attention,
    complexes,
    convolution,
    diagnosed,
    diagnosed_terms,
    elementwise,
    fed,
    functions,
    losses,
    low_precision,
    memory,
    normalization,
    optimizers,
    parts,
    perceptron,
    recurrent,
    steps,
    taught,
)
from gallery.entry import ENTRIES, OWN, Entry, Wrong, WrongRule, named, verdict
from gallery.functions import WrongFunction
from gallery.perceptron import WrongModel
from gallery.steps import STEPS, WrongStep
from gallery.taught import NOTICED, WrongLesson

__all__ = [
    "ENTRIES",
    "NOTICED",
    "OWN",
    "STEPS",
    "Entry",
    "Wrong",
    "WrongFunction",
    "WrongLesson",
    "WrongModel",
    "WrongRule",
    "WrongStep",
    "affine",
    "attention",
    "complexes",
    "convolution",
    "diagnosed",
    "diagnosed_terms",
    "elementwise",
    "fed",
    "functions",
    "losses",
    "low_precision",
    "memory",
    "named",
    "normalization",
    "optimizers",
    "parts",
    "perceptron",
    "recurrent",
    "steps",
    "taught",
    "verdict",
]
