"""Right layers at random: forwards with right hand-written backwards, over which a gradient check must raise no alarm.

`random_right_layer(seed, dtype)` draws the sizes (some of them 1, some equal), the settings and the values. Each family
is written as one would write it who trusts the chain rule, in the contract
`output, cache, … = forward(*example)` and `backward(d_output, cache)`.
"""

import torch

from right_layers import (
    arithmetic,
    bilinear,
    blocks,
    convolution,
    costs,
    elementwise,
    indexing,
    movement,
    normalization,
    recurrence,
    reductions,
    softmax,
)
from right_layers.base import FAMILIES, Draw, RightLayer

SUBJECTS = (  # each adds its families
    arithmetic,
    bilinear,
    blocks,
    convolution,
    costs,
    elementwise,
    indexing,
    movement,
    normalization,
    recurrence,
    reductions,
    softmax,
)


def random_right_layer(seed: int, dtype: torch.dtype = torch.float64) -> RightLayer:
    """Family `seed` modulo their number; the same layer and values, rounded, at every dtype."""
    return FAMILIES[seed % len(FAMILIES)](Draw(seed, dtype))
