"""One training step of a hand-written model: forward, cost, backward, update.

All speed lives here. This is the plain, eager form, and it decides the grad mode: the whole step runs under
`torch.inference_mode()`, where autograd cannot take part even by accident. θ and the optimizer's state are made
outside of it.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from manual_backprop.losses import Loss
from manual_backprop.parameters import Parameters, Receiver, Shape
from training.learners.base import Backpropagation, Buffers


class Model(Protocol):
    """What a model of manual_backprop/models offers (docs/contracts.md)."""

    @property
    def shapes(self) -> Mapping[str, Shape]: ...

    def initial_state(self) -> Buffers: ...

    def forward(
        self,
        params: Mapping[str, Tensor],
        x: Tensor,
        *,
        state: Buffers | None = None,
        noise: Any = None,
        training: bool = False,
    ) -> tuple[Tensor, Any, Buffers]: ...

    def backward(
        self,
        params: Mapping[str, Tensor],
        caches: Any,
        d_output: Tensor,
        gradients: Receiver,
        *,
        deltas: Receiver | None = None,
        need_dx: bool = False,
    ) -> Tensor | None: ...

    def intermediates(self, caches: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]: ...

    def equation(self, name: str) -> str: ...


def backpropagate(
    model: Model,
    loss: Loss,
    params: Mapping[str, Tensor],
    state: Buffers,
    x: Tensor,
    y: Tensor,
    gradients: Parameters,
    noise: Any = None,
) -> Backpropagation:
    """The cost of a batch and its whole gradient, which is handed to `gradients` tensor by tensor. θ does not move."""
    with torch.inference_mode():
        output, caches, new_state = model.forward(params, x, state=state, noise=noise, training=True)
        C, cache = loss.forward(output, y)
        d_output = loss.backward(1.0, cache)
        deltas = {"output": d_output}
        model.backward(params, caches, d_output, gradients, deltas=deltas)
        z, activations = model.intermediates(caches)
        return Backpropagation(C, gradients, deltas, z, activations, new_state)
