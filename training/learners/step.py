"""One training step of a hand-written model: forward, cost, backward, update.

All speed lives here. This is the plain, eager form, and it decides the grad mode: the whole step runs under
`torch.inference_mode()`, where autograd cannot take part even by accident. θ and the optimizer's state are made
outside of it.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from manual_backprop.losses import Loss
from manual_backprop.parameters import NOWHERE, Parameters
from training.families.model import Buffers, Model
from training.learners.base import Backpropagation


def backpropagate(
    model: Model,
    loss: Loss,
    params: Mapping[str, Tensor],
    state: Buffers,
    x: Tensor,
    y: Tensor,
    gradients: Parameters,
    noise: Any = None,
    keep: bool = True,
) -> Backpropagation:
    """The cost of a batch and its whole gradient, which is handed to `gradients` tensor by tensor. θ does not move.

    Only with `keep` are z, activations and deltas there afterwards; without, each is let go as soon as it is used.
    """
    z: dict[str, Tensor] = {}
    activations: dict[str, Tensor] = {}
    deltas: dict[str, Tensor] = {}
    to_z, to_activations, to_deltas = (z, activations, deltas) if keep else (NOWHERE,) * 3
    with torch.inference_mode():
        output, caches, new_state = model.forward(
            params, x, state=state, noise=noise, training=True, outputs=to_z, activations=to_activations
        )
        C, cache = loss.forward(output, y)
        to_deltas["output"] = d_output = loss.backward(1.0, cache)
        model.backward(params, caches, d_output, gradients, deltas=to_deltas)
    return Backpropagation(C, gradients, deltas, z, activations, new_state)
