"""A recurrent layer called step by step, so that the state after every step and its gradient are seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

States = list[Tensor]  # h (B, N), and of an LSTM c (B, N)


def walk(
    cell: Any,
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    d_states: Sequence[Tensor],
    **options: Any,
) -> tuple[list[States], list[States]]:
    """The states after 0, 1, … T steps of x (B, T, I), and the gradient of each; `d_states` is that of the last ones.

    The cost reads the last states only. Each step is one call of the layer, whose backward pass returns the gradient
    of the states before it (RN4; LS8 and LS9; GR7).
    """
    kept, seen, caches = list(states), [list(states)], []
    for t in range(x.shape[1]):
        _, *kept, cache = cell.forward(x[:, t : t + 1], *kept, *weights, **options)
        seen.append(kept)
        caches.append(cache)
    dy, gradients = x.new_zeros(len(x), 1, states[0].shape[1]), [list(d_states)]
    for cache in reversed(caches):
        _, *found = cell.backward(dy, *gradients[-1], cache, need_dx=False)
        gradients.append(found[: len(states)])
    return seen, gradients[::-1]
