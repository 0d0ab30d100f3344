"""Wrong backward passes; each says what is wrong, and what a true diagnosis would say."""

from benchmarks.unseen.wrong import (
    activations,
    affine,
    algebra,
    attention,
    calling,
    costs,
    elementwise,
    indexing,
    layers,
    operators,
    recurrence,
    samplers,
    segments,
    solvers,
    transforms,
    weights,
)

__all__ = [
    "activations",
    "affine",
    "algebra",
    "attention",
    "calling",
    "costs",
    "elementwise",
    "indexing",
    "layers",
    "operators",
    "recurrence",
    "samplers",
    "segments",
    "solvers",
    "transforms",
    "weights",
]
