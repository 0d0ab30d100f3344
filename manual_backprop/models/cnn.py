"""Convolutional networks: LeNet-5, and a small residual network with batch normalization.

Forward is a list of layer calls, each of which leaves in `caches` what its backward needs; backward is the same list
read upward, and takes every cache out as it comes to it. So memory falls on the way down as it rose on the way up, and
a second backward needs a second forward. The equations are those of the layers (layers/*.py, docs/derivations.md); δ of
a layer call is the gradient of the cost with respect to its output. One is of the models themselves: where a value
goes two ways, as around a residual block, y = x + f(x), its gradient is the sum of what comes back on both.

    RS1  dx = dy + (what f's backward makes of dy)
"""

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor

from manual_backprop.layers import adaptive_avg_pool2d, avg_pool2d, batch_norm, conv2d, dropout, linear, max_pool2d
from manual_backprop.layers.activations import ACTIVATIONS
from manual_backprop.parameters import NOWHERE, Receiver, Shape

Caches = dict[str, Any]  # of every layer call by its name


@dataclass(frozen=True)
class LeNet5:
    """LeNet-5 (LeCun, Bottou, Bengio and Haffner 1998), for pictures of `shape` (channels, height, width).

        C1 6@28×28 → S2 6@14×14 → C3 16@10×10 → S4 16@5×5 → C5 120 → F6 84 → F7 classes

    C are 5×5 convolutions, S means of 2×2, F affine. Pictures of 28×28 are padded to the paper's 32×32. After C1, C3,
    C5 and F6 comes the `activation`, in the paper 1.7159 tanh(2z/3). Unlike the paper's, S has no weights and no
    activation, every map of C3 sees all of S2's, and F7 gives logits instead of distances to drawn digits.

    Raises ValueError for pictures of another size, fewer than one class, and an unknown activation.
    """

    shape: tuple[int, int, int]
    classes: int
    activation: str = "scaled_tanh"

    def __post_init__(self) -> None:
        require_pictures(self.shape, self.classes, self.activation)
        if self.shape[1:] not in ((28, 28), (32, 32)):
            height, width = self.shape[1:]
            raise ValueError(f"LeNet-5 reads pictures of 28×28 or 32×32 pixels, not of {height}×{width}")

    @property
    def title(self) -> str:
        return "LeNet-5"

    def kind(self, layer: str) -> str:
        """What a layer is, in words."""
        kind = "5×5 conv" if layer[0] == "C" else "linear"
        return kind if layer == "F7" else f"{kind}, {self.activation}"

    @property
    def shapes(self) -> dict[str, Shape]:
        """Names and shapes of the parameters, in the order in which θ holds them."""
        weights: dict[str, Shape] = {
            "C1": (6, self.shape[0], 5, 5),
            "C3": (16, 6, 5, 5),
            "C5": (120, 16, 5, 5),
            "F6": (84, 120),
            "F7": (self.classes, 84),
        }
        return {
            f"{name}.{kind}": shape for name, W in weights.items() for kind, shape in (("weight", W), ("bias", W[:1]))
        }

    @property
    def dropped(self) -> tuple[int, ...]:
        """Widths of the masks that dropout takes: none."""
        return ()

    def initial_state(self) -> dict[str, Tensor]:
        """Buffers that are no parameters: none."""
        return {}

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
        """Logits (B, classes) for x (B, channels·height·width), the caches, and the state, of which there is none."""
        sigma, caches = ACTIVATIONS[self.activation], Caches()
        a = rows_to_pictures(x, self.shape)
        z, caches["C1"] = conv2d.forward(a, params["C1.weight"], params["C1.bias"], padding=(32 - a.shape[2]) // 2)
        a, caches["C1.a"] = sigma.forward(z)
        p, caches["S2"] = avg_pool2d.forward(a, 2)
        outputs["C1"], activations["C1"], outputs["S2"] = z, a, p
        z, caches["C3"] = conv2d.forward(p, params["C3.weight"], params["C3.bias"])
        a, caches["C3.a"] = sigma.forward(z)
        p, caches["S4"] = avg_pool2d.forward(a, 2)
        outputs["C3"], activations["C3"], outputs["S4"] = z, a, p
        z, caches["C5"] = conv2d.forward(p, params["C5.weight"], params["C5.bias"])
        a, caches["C5.a"] = sigma.forward(z)
        outputs["C5"], activations["C5"] = z, a
        z, caches["F6"] = linear.forward(a.flatten(1), params["F6.weight"], params["F6.bias"])
        a, caches["F6.a"] = sigma.forward(z)
        outputs["F6"], activations["F6"] = z, a
        z, caches["F7"] = linear.forward(a, params["F7.weight"], params["F7.bias"])
        outputs["F7"] = z
        return z, caches, {}

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
        """Hand every parameter's gradient to `gradients`, and every δ to `deltas`, as soon as it is known.

        `d_output` is the gradient of the cost with respect to the logits. Returns ∂C/∂x if `need_dx`.
        """
        sigma = ACTIVATIONS[self.activation]
        deltas["F7"] = dz = d_output
        da, gradients["F7.weight"], gradients["F7.bias"] = linear.backward(dz, caches.pop("F7"))  # LI1, LI2, LI3
        deltas["F6"] = dz = sigma.backward(da, caches.pop("F6.a"))  # AC1
        da, gradients["F6.weight"], gradients["F6.bias"] = linear.backward(dz, caches.pop("F6"))
        deltas["C5"] = dz = sigma.backward(da.view(-1, 120, 1, 1), caches.pop("C5.a"))
        dp, gradients["C5.weight"], gradients["C5.bias"] = conv2d.backward(dz, caches.pop("C5"))  # CV1, CV2, CV3
        deltas["S4"] = dp
        da = avg_pool2d.backward(dp, caches.pop("S4"))  # AP1
        deltas["C3"] = dz = sigma.backward(da, caches.pop("C3.a"))
        dp, gradients["C3.weight"], gradients["C3.bias"] = conv2d.backward(dz, caches.pop("C3"))
        deltas["S2"] = dp
        da = avg_pool2d.backward(dp, caches.pop("S2"))
        deltas["C1"] = dz = sigma.backward(da, caches.pop("C1.a"))
        dx, gradients["C1.weight"], gradients["C1.bias"] = conv2d.backward(dz, caches.pop("C1"), need_dx)
        return dx.flatten(1) if need_dx else None

    def equation(self, name: str) -> str:
        """The label of the equation that a gradient (`C3.weight`) or a δ (`C3`) comes from."""
        layer, _, kind = name.partition(".")
        if kind:
            return {"C": "CV", "F": "LI"}[layer[0]] + {"weight": "2", "bias": "3"}[kind]
        return {"S2": "CV1", "S4": "CV1", "F7": "∂C/∂output"}.get(layer, "AC1")


@dataclass(frozen=True)
class CNN:
    """A residual network of stages, one for each of `channels`, for pictures of `shape` (channels, height, width).

        stage   conv → pool → norm → σ → block → … → block           half as many rows and columns as before
        block   y = σ(x + norm2(conv2(σ(norm1(conv1(x))))))          `blocks` of them, which keep all sizes
        head    mean over all places → dropout → linear

    conv is 3×3, padded by 1, and has no bias, because the batch norm behind it would take it away; pool is the maximum
    of 2×2, before norm and σ instead of behind them, which then have a quarter of the values to work on. `dropout` is
    the probability with which a channel's mean is dropped where the forward pass is given a mask. Sources: Ioffe and
    Szegedy 2015; He et al. 2015 (the block).

    Raises ValueError for sizes below 1, pictures too small for so many stages, an unknown activation, or a dropout
    outside of [0, 1).
    """

    shape: tuple[int, int, int]
    classes: int
    channels: tuple[int, ...] = (16, 32, 64)
    blocks: int = 1
    activation: str = "relu"
    dropout: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        require_pictures(self.shape, self.classes, self.activation)
        if not self.channels or min(self.channels) < 1 or self.blocks < 0:
            raise ValueError(
                f"channels {self.channels} and {self.blocks} blocks make no network: "
                "give channels from 1, blocks from 0"
            )
        if min(self.shape[1:]) >> len(self.channels) < 1:
            most = min(self.shape[1:]).bit_length() - 1
            height, width = self.shape[1:]
            raise ValueError(
                f"{len(self.channels)} stages halve a picture {len(self.channels)} times, and {height}×{width} pixels "
                f"allow {most}: give fewer channels"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}, but it must be from 0 to below 1")

    @property
    def title(self) -> str:
        blocks = "1 block" if self.blocks == 1 else f"{self.blocks or 'no'} blocks"
        return f"CNN {'-'.join(map(str, self.channels))}, {blocks} a stage"

    def kind(self, layer: str) -> str:
        """What a layer is, in words."""
        kind = layer.rpartition(".")[2]
        if kind.startswith("norm"):
            return f"batch norm, {self.activation}"
        return "linear" if kind == "linear" else "3×3 conv, pool" if kind == "conv" else "3×3 conv"

    @property
    def shapes(self) -> dict[str, Shape]:
        """Names and shapes of the parameters, in the order in which θ holds them."""
        shapes: dict[str, Shape] = {}
        for stage, (C_in, C) in enumerate(zip((self.shape[0], *self.channels), self.channels, strict=False), start=1):
            shapes[f"stage{stage}.conv.weight"] = (C, C_in, 3, 3)
            shapes[f"stage{stage}.norm.weight"] = shapes[f"stage{stage}.norm.bias"] = (C,)
            for k in range(1, self.blocks + 1):
                for i in (1, 2):
                    shapes[f"stage{stage}.block{k}.conv{i}.weight"] = (C, C, 3, 3)
                    shapes[f"stage{stage}.block{k}.norm{i}.weight"] = (C,)
                    shapes[f"stage{stage}.block{k}.norm{i}.bias"] = (C,)
        shapes["linear.weight"], shapes["linear.bias"] = (self.classes, self.channels[-1]), (self.classes,)
        return shapes

    @property
    def dropped(self) -> tuple[int, ...]:
        """Widths of the masks that dropout takes."""
        return self.channels[-1:]

    def initial_state(self) -> dict[str, Tensor]:
        """Running mean and variance of every batch norm, and how many batches they have seen."""
        state = {}
        for name, shape in self.shapes.items():
            norm, _, kind = name.rpartition(".")
            if kind == "weight" and len(shape) == 1:
                state[f"{norm}.running_mean"], state[f"{norm}.running_var"] = torch.zeros(shape), torch.ones(shape)
                state[f"{norm}.num_batches_tracked"] = torch.tensor(0)
        return state

    def forward(
        self,
        params: Mapping[str, Tensor],
        x: Tensor,
        *,
        state: Mapping[str, Tensor] | None = None,
        noise: tuple[Tensor] | None = None,
        training: bool = False,
        outputs: Receiver = NOWHERE,
        activations: Receiver = NOWHERE,
    ) -> tuple[Tensor, Caches, Mapping[str, Tensor]]:
        """Logits (B, classes) for x (B, channels·height·width), the caches, and the new state.

        In training batch norm takes the batch's own statistics and moves the running ones; otherwise it takes these.
        `noise` is dropout's mask (B, last of the channels); without it nothing is dropped.
        """
        if state is None:
            state = {name: t.to(x) if t.is_floating_point() else t for name, t in self.initial_state().items()}
        state = dict(state)
        sigma, caches = ACTIVATIONS[self.activation], Caches(training=training)
        a = rows_to_pictures(x, self.shape).to(memory_format=torch.channels_last)  # in memory, for speed
        for stage in self._stages():
            z, caches[f"{stage}.conv"] = conv2d.forward(a, params[f"{stage}.conv.weight"], padding=1)
            p, caches[f"{stage}.pool"] = max_pool2d.forward(z, 2)
            outputs[f"{stage}.conv"], outputs[f"{stage}.pool"] = z, p
            z, caches[f"{stage}.norm"] = normalize(f"{stage}.norm", params, p, state, training)
            a, caches[f"{stage}.a"] = sigma.forward(z)
            outputs[f"{stage}.norm"], activations[f"{stage}.norm"] = z, a
            for block in self._blocks(stage):
                skip = a
                z, caches[f"{block}.conv1"] = conv2d.forward(a, params[f"{block}.conv1.weight"], padding=1)
                outputs[f"{block}.conv1"] = z
                z, caches[f"{block}.norm1"] = normalize(f"{block}.norm1", params, z, state, training)
                a, caches[f"{block}.a1"] = sigma.forward(z)
                outputs[f"{block}.norm1"], activations[f"{block}.norm1"] = z, a
                z, caches[f"{block}.conv2"] = conv2d.forward(a, params[f"{block}.conv2.weight"], padding=1)
                outputs[f"{block}.conv2"] = z
                z, caches[f"{block}.norm2"] = normalize(f"{block}.norm2", params, z, state, training)
                outputs[f"{block}.norm2"] = z
                a, caches[f"{block}.a2"] = sigma.forward(skip + z)
                activations[f"{block}.norm2"] = a
        p, caches["pool"] = adaptive_avg_pool2d.forward(a, 1)
        outputs["pool"] = p
        a = p.flatten(1)
        if noise is not None:
            a, caches["dropout"] = dropout.forward(a, noise[0], 1 - self.dropout)
        z, caches["linear"] = linear.forward(a, params["linear.weight"], params["linear.bias"])
        outputs["linear"] = z
        return z, caches, state

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
        """Hand every parameter's gradient to `gradients`, and every δ to `deltas`, as soon as it is known.

        `d_output` is the gradient of the cost with respect to the logits. Returns ∂C/∂x if `need_dx`.
        """
        sigma = ACTIVATIONS[self.activation]
        norm = batch_norm.backward if caches["training"] else batch_norm.backward_of_evaluate
        deltas["linear"] = dz = d_output
        da, gradients["linear.weight"], gradients["linear.bias"] = linear.backward(dz, caches.pop("linear"))  # LI1 …
        if "dropout" in caches:
            da = dropout.backward(da, caches.pop("dropout"))
        deltas["pool"] = dp = da.view(*da.shape, 1, 1)
        da = adaptive_avg_pool2d.backward(dp, caches.pop("pool"))  # AA1
        for stage in reversed(self._stages()):
            for block in reversed(self._blocks(stage)):
                deltas[f"{block}.norm2"] = dy = sigma.backward(da, caches.pop(f"{block}.a2"))  # AC1
                dz, dgamma, dbeta = norm(dy, caches.pop(f"{block}.norm2"))  # BN3, BN2, BN1
                gradients[f"{block}.norm2.weight"], gradients[f"{block}.norm2.bias"] = dgamma, dbeta
                deltas[f"{block}.conv2"] = dz
                da, gradients[f"{block}.conv2.weight"] = conv2d.backward(dz, caches.pop(f"{block}.conv2"))  # CV1 …
                deltas[f"{block}.norm1"] = dz = sigma.backward(da, caches.pop(f"{block}.a1"))
                dz, dgamma, dbeta = norm(dz, caches.pop(f"{block}.norm1"))
                gradients[f"{block}.norm1.weight"], gradients[f"{block}.norm1.bias"] = dgamma, dbeta
                deltas[f"{block}.conv1"] = dz
                da, gradients[f"{block}.conv1.weight"] = conv2d.backward(dz, caches.pop(f"{block}.conv1"))
                da = dy + da  # RS1
            deltas[f"{stage}.norm"] = dz = sigma.backward(da, caches.pop(f"{stage}.a"))
            dp, dgamma, dbeta = norm(dz, caches.pop(f"{stage}.norm"))
            gradients[f"{stage}.norm.weight"], gradients[f"{stage}.norm.bias"] = dgamma, dbeta
            deltas[f"{stage}.pool"] = dp
            deltas[f"{stage}.conv"] = dz = max_pool2d.backward(dp, caches.pop(f"{stage}.pool"))  # MP1
            need_da = need_dx or stage != "stage1"
            da, gradients[f"{stage}.conv.weight"] = conv2d.backward(dz, caches.pop(f"{stage}.conv"), need_da)
        return da.flatten(1) if need_dx else None

    def equation(self, name: str) -> str:
        """The label of the equation that a gradient (`stage1.conv.weight`) or a δ (`stage1.conv`) comes from."""
        layer, _, last = name.rpartition(".")
        if last == "weight":
            return {"conv": "CV2", "norm": "BN2", "line": "LI2"}[layer.rpartition(".")[2][:4]]
        if last == "bias":
            return {"norm": "BN1", "line": "LI3"}[layer.rpartition(".")[2][:4]]
        if not layer:
            return {"pool": "LI1", "linear": "∂C/∂output"}[last]
        return {"conv": "MP1", "norm": "AC1", "norm1": "AC1", "norm2": "AC1"}.get(last, "BN3")

    def _stages(self) -> list[str]:
        return [f"stage{s}" for s in range(1, len(self.channels) + 1)]

    def _blocks(self, stage: str) -> list[str]:
        return [f"{stage}.block{k}" for k in range(1, self.blocks + 1)]


def normalize(
    name: str, params: Mapping[str, Tensor], x: Tensor, state: MutableMapping[str, Tensor], training: bool
) -> tuple[Tensor, batch_norm.Cache]:
    """The batch norm of this name, and its cache; in training its running statistics in `state` become new ones."""
    gamma, beta = params[f"{name}.weight"], params[f"{name}.bias"]
    mean, var, batches = f"{name}.running_mean", f"{name}.running_var", f"{name}.num_batches_tracked"
    if not training:
        return batch_norm.evaluate(x, gamma, beta, state[mean], state[var])
    y, cache, state[mean], state[var] = batch_norm.forward(x, gamma, beta, state[mean], state[var])
    state[batches] = state[batches] + 1
    return y, cache


def rows_to_pictures(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """x (B, channels·height·width) as (B, channels, height, width). Raises ValueError for rows of another length."""
    if x.shape[1:] != (prod(shape),):
        sizes = "×".join(map(str, shape))
        raise ValueError(f"x is {tuple(x.shape)}: give rows of {prod(shape)} numbers, {sizes} pictures")
    return x.reshape(len(x), *shape)


def require_pictures(shape: tuple[int, int, int], classes: int, activation: str) -> None:
    if len(shape) != 3 or min(shape) < 1 or classes < 1:
        raise ValueError(
            f"shape {shape} and {classes} classes make no network: (channels, height, width) and classes are from 1"
        )
    if activation not in ACTIVATIONS:
        raise ValueError(f"{activation!r} is not an activation; there are {', '.join(ACTIVATIONS)}")
