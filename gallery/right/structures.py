"""Right pairs and modules whose arguments lie in lists, tuples and dictionaries, or are given by keyword."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from gallery.entry import normal

DRAWS = torch.Generator().manual_seed(0)


class State(NamedTuple):
    h: Tensor
    c: Tensor


IDS = torch.tensor([2, 0, 1])
EXAMPLE = [
    [normal(DRAWS, 3), normal(DRAWS, 3)],
    {"x": normal(DRAWS, 3), "ids": IDS},
    State(normal(DRAWS, 3), normal(DRAWS, 3)),
]
SCALE = {"scale": torch.tensor(-0.7, dtype=torch.float64)}


def forward(xs, batch, state, *, scale):
    inside = xs[0] * xs[1] ** 2 + batch["x"][batch["ids"]] * state.h + state.c.sin()
    return scale * inside, (xs, batch, state, scale, inside)


def backward(dy, cache, factor=1.0):
    """Right where `factor`, that of the state's c, is 1."""
    (a, b), batch, state, scale, inside = cache
    dscale, dy = (dy * inside).sum(), dy * scale
    dx = torch.zeros_like(batch["x"]).index_add_(0, batch["ids"], dy * state.h)
    dstate = State(dy * batch["x"][batch["ids"]], factor * dy * state.c.cos())
    return (dy * b**2, 2 * dy * a * b), {"x": dx}, dstate, dscale


def nested(xs, batch, state, *, scale):
    """The same for autograd, its output in a structure too."""
    return {"y": [forward(xs, batch, state, scale=scale)[0], None]}


class Spectral(nn.Module):
    """A complex parameter, inputs in a list and by keyword, and an input that is called as a parameter."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.complex(normal(DRAWS, 4, 2), normal(DRAWS, 4, 2)))

    def forward(self, xs, *, weight):
        return torch.fft.rfft(xs[0] * xs[1]) @ self.weight * weight
