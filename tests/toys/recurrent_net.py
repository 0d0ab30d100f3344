"""A recurrent network over T steps, with dropout on its input and a hidden state that is carried from batch to batch.

    h_t = tanh(x_t W_xᵀ + h_{t−1} W_hᵀ + b)  for t = 1 … T,  output = h_T Wᵀ + b

    RN1  δ of cell[t] = ∂C/∂h of that call: from the output layer for the last, from the next call for the others
    RN2  ∂C/∂W_x, ∂C/∂W_h, ∂C/∂b of the cell = the sum over its T calls
    RN3  ∂C/∂W, ∂C/∂b of the output layer

Backpropagation through time ends at h₀, the state that the batch before left: it is truncated.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from manual_backprop.layers import dropout
from manual_backprop.parameters import NOWHERE, Receiver, Shape
from toys.layers import linear, recurrent_cell

Caches = dict[str, Any]
KEEP = 0.7


@dataclass(frozen=True)
class RecurrentNet:
    """Sequences come in as rows, (B, time·features); in training every batch has `batch` of them."""

    time: int
    features: int
    hidden: int
    classes: int
    batch: int

    @property
    def shapes(self) -> dict[str, Shape]:
        return {
            "cell.weight_x": (self.hidden, self.features),
            "cell.weight_h": (self.hidden, self.hidden),
            "cell.bias": (self.hidden,),
            "linear.weight": (self.classes, self.hidden),
            "linear.bias": (self.classes,),
        }

    def initial_state(self) -> dict[str, Tensor]:
        return {"h": torch.zeros(self.batch, self.hidden)}

    def forward(
        self,
        params: Mapping[str, Tensor],
        x: Tensor,
        *,
        state: Mapping[str, Tensor] | None = None,
        noise: Tensor | None = None,
        training: bool = False,
        outputs: Receiver = NOWHERE,
        activations: Receiver = NOWHERE,
    ) -> tuple[Tensor, Caches, Mapping[str, Tensor]]:
        """`noise` is dropout's mask, of x's shape; without it nothing is dropped. Evaluation starts from h = 0."""
        cell = [params[name] for name in ("cell.weight_x", "cell.weight_h", "cell.bias")]
        caches: Caches = {"dropout": None, "cell": []}
        if noise is not None:
            x, caches["dropout"] = dropout.forward(x, noise, KEEP)
        steps = x.view(len(x), self.time, self.features)
        h = state["h"] if training and state is not None else x.new_zeros(len(x), self.hidden)
        for t in range(self.time):
            h, cache = recurrent_cell.forward(steps[:, t], h, *cell)
            caches["cell"].append(cache)
            outputs[f"cell[{t}]"] = h
        z, caches["linear"] = linear.forward(h, params["linear.weight"], params["linear.bias"])
        outputs["linear"] = z
        return z, caches, {"h": h}

    def backward(
        self,
        params: Mapping[str, Tensor],
        caches: Caches,
        d_output: Tensor,
        gradients: Receiver,
        *,
        deltas: Receiver = NOWHERE,
        need_dx: bool = False,
    ) -> Tensor | None:
        deltas["linear"] = d_output
        dh, gradients["linear.weight"], gradients["linear.bias"] = linear.backward(d_output, caches["linear"])
        dW_x, dW_h = torch.zeros_like(params["cell.weight_x"]), torch.zeros_like(params["cell.weight_h"])
        db = torch.zeros_like(params["cell.bias"])
        dx = []
        for t in reversed(range(self.time)):
            deltas[f"cell[{t}]"] = dh
            dx_t, dh, dW_x_t, dW_h_t, db_t = recurrent_cell.backward(dh, caches["cell"][t])
            dW_x, dW_h, db = dW_x + dW_x_t, dW_h + dW_h_t, db + db_t
            dx.append(dx_t)
        gradients["cell.weight_x"], gradients["cell.weight_h"], gradients["cell.bias"] = dW_x, dW_h, db
        if not need_dx:
            return None
        d_steps = torch.stack(dx[::-1], dim=1).flatten(1)
        return d_steps if caches["dropout"] is None else dropout.backward(d_steps, caches["dropout"])

    def equation(self, name: str) -> str:
        layer, _, parameter = name.partition(".")
        if not parameter:
            return "RN1"
        return "RN2" if layer == "cell" else "RN3"


def dropout_masks(steps: int, x: Tensor) -> Tensor:
    """The mask of the step after `steps` steps, a function of their number: all implementations draw the same."""
    generator = torch.Generator().manual_seed(steps)
    return (torch.rand(x.shape, generator=generator) < KEEP).to(x.device, x.dtype)
