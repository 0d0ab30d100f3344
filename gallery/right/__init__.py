"""Right layers at random: forwards with right hand-written backwards, over which a gradient check must raise no alarm.

`random_right_layer(seed, dtype)` draws the sizes (some of them 1, some equal), the settings and the values. Each family
is written as one would write it who trusts the chain rule, in the contract
`output, cache, … = forward(*example)` and `backward(d_output, cache)`.
"""

import importlib
import pkgutil

import torch

from gallery.right.base import FAMILIES, Draw, RightLayer

for subject in pkgutil.iter_modules(__path__):  # in alphabetical order; most add their families
    importlib.import_module(f"{__name__}.{subject.name}")


def random_right_layer(seed: int, dtype: torch.dtype = torch.float64) -> RightLayer:
    """Family `seed` modulo their number; the same layer and values, rounded, at every dtype."""
    return FAMILIES[seed % len(FAMILIES)](Draw(seed, dtype))
