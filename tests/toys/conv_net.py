"""A convolutional network in which one kernel is used twice, with batch norm behind both uses.

x → conv → norm1 → tanh → conv (the same W and b) → norm2 → tanh → mean over places → linear

CN1  δ          of every layer call, from the one after it: the gradient of its output
CN2  ∂C/∂W, ∂C/∂b of the convolution = the sum over its two calls
CN3  ∂C/∂γ, ∂C/∂β of a batch norm
CN4  ∂C/∂W, ∂C/∂b of the linear layer
"""

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from manual_backprop.layers.activations import ACTIVATIONS
from manual_backprop.parameters import NOWHERE, Receiver, Shape
from toys.layers import batch_norm, conv2d, linear, mean_pool

tanh = ACTIVATIONS["tanh"]
Caches = dict[str, Any]


@dataclass(frozen=True)
class ConvNet:
    """Images come in as rows, (B, channels·height·width)."""

    channels: int
    height: int
    width: int
    kernel: tuple[int, int]
    classes: int

    # A shift of a whole channel is what batch norm takes away, so the sums over these δ cancel.
    zeros = {"conv.bias": ("conv[0]", "conv[1]")}  # noqa: RUF012

    @property
    def shapes(self) -> dict[str, Shape]:
        C = self.channels
        return {
            "conv.weight": (C, C, *self.kernel),
            "conv.bias": (C,),
            "norm1.weight": (C,),
            "norm1.bias": (C,),
            "norm2.weight": (C,),
            "norm2.bias": (C,),
            "linear.weight": (self.classes, C),
            "linear.bias": (self.classes,),
        }

    def initial_state(self) -> dict[str, Tensor]:
        state = {}
        for norm in ("norm1", "norm2"):
            state[f"{norm}.running_mean"] = torch.zeros(self.channels)
            state[f"{norm}.running_var"] = torch.ones(self.channels)
            state[f"{norm}.num_batches_tracked"] = torch.tensor(0)
        return state

    def forward(
        self,
        params: Mapping[str, Tensor],
        x: Tensor,
        *,
        state: Mapping[str, Tensor] | None = None,
        noise: None = None,
        training: bool = False,
        outputs: Receiver = NOWHERE,
        activations: Receiver = NOWHERE,
    ) -> tuple[Tensor, Caches, Mapping[str, Tensor]]:
        state = self.initial_state() if state is None else state
        new_state = dict(state)
        calls: Caches = {}
        images = x.view(len(x), self.channels, self.height, self.width)
        z1, calls["conv[0]"] = conv2d.forward(images, params["conv.weight"], params["conv.bias"])
        y1, calls["norm1"] = self._norm("norm1", params, z1, state, new_state, training)
        a1, calls["tanh[0]"] = tanh.forward(y1)
        z2, calls["conv[1]"] = conv2d.forward(a1, params["conv.weight"], params["conv.bias"])
        y2, calls["norm2"] = self._norm("norm2", params, z2, state, new_state, training)
        a2, calls["tanh[1]"] = tanh.forward(y2)
        p, calls["pool"] = mean_pool.forward(a2)
        z3, calls["linear"] = linear.forward(p, params["linear.weight"], params["linear.bias"])
        outputs["conv[0]"], outputs["norm1"], outputs["tanh[0]"] = z1, y1, a1
        outputs["conv[1]"], outputs["norm2"], outputs["tanh[1]"] = z2, y2, a2
        outputs["pool"], outputs["linear"] = p, z3
        return z3, calls, new_state

    def _norm(
        self,
        norm: str,
        params: Mapping[str, Tensor],
        z: Tensor,
        state: Mapping[str, Tensor],
        new_state: MutableMapping[str, Tensor],
        training: bool,
    ) -> tuple[Tensor, Any]:
        mean, var, batches = f"{norm}.running_mean", f"{norm}.running_var", f"{norm}.num_batches_tracked"
        gamma, beta = params[f"{norm}.weight"], params[f"{norm}.bias"]
        if not training:
            return batch_norm.evaluate(z, gamma, beta, state[mean], state[var]), None
        y, cache, new_state[mean], new_state[var] = batch_norm.forward(z, gamma, beta, state[mean], state[var])
        new_state[batches] = state[batches] + 1
        return y, cache

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
        calls = caches
        dz3 = d_output
        dp, gradients["linear.weight"], gradients["linear.bias"] = linear.backward(dz3, calls["linear"])
        da2 = mean_pool.backward(dp, calls["pool"])
        dy2 = tanh.backward(da2, calls["tanh[1]"])
        dz2, gradients["norm2.weight"], gradients["norm2.bias"] = batch_norm.backward(dy2, calls["norm2"])
        da1, dW2, db2 = conv2d.backward(dz2, calls["conv[1]"])
        dy1 = tanh.backward(da1, calls["tanh[0]"])
        dz1, gradients["norm1.weight"], gradients["norm1.bias"] = batch_norm.backward(dy1, calls["norm1"])
        dx, dW1, db1 = conv2d.backward(dz1, calls["conv[0]"], need_dx=need_dx)
        gradients["conv.weight"] = dW1 + dW2
        gradients["conv.bias"] = db1 + db2
        deltas["linear"], deltas["pool"] = dz3, dp
        deltas["tanh[1]"], deltas["norm2"], deltas["conv[1]"] = da2, dy2, dz2
        deltas["tanh[0]"], deltas["norm1"], deltas["conv[0]"] = da1, dy1, dz1
        return None if dx is None else dx.flatten(1)

    def equation(self, name: str) -> str:
        layer, _, parameter = name.partition(".")
        if not parameter:
            return "CN1"
        return {"conv": "CN2", "linear": "CN4"}.get(layer, "CN3")
