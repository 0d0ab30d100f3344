"""A small residual network with batch normalization: a list of layer calls, and the same list read upward.

    stage   conv → pool → norm → σ → block → … → block           half as many rows and columns as before
    block   y = σ(x + norm2(conv2(σ(norm1(conv1(x))))))          keeps all sizes
    head    mean over all places → dropout → linear

conv is 3×3, padded by 1, and has no bias, because the batch norm behind it would take it away; pool is the maximum of
2×2, before norm and σ instead of behind them, which then have a quarter of the values to work on.

The equations are those of the layers (layers/*.py, docs/derivations.md), and one of the model itself: where a value
goes two ways, as around a residual block, y = x + f(x), its gradient is the sum of what comes back on both.

    RS1  dx = dy + (what f's backward makes of dy)

Sources: Ioffe and Szegedy 2015; He et al. 2015 (the block).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from manual_backprop.layers import adaptive_avg_pool2d, batch_norm, conv2d, dropout, linear, max_pool2d
from manual_backprop.layers.activations import ACTIVATIONS
from manual_backprop.models.images import require_images, rows_to_images
from manual_backprop.parameters import Receiver, Shape
from manual_backprop.tape import Tape


@dataclass(frozen=True)
class CNN:
    """A stage for each of `channels`, with so many `blocks` each, for pictures of `shape` (channels, height, width).

    `dropout` is the probability with which training drops a channel's mean.

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
        require_images(self.shape, self.classes, self.activation)
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
                f"allow {most}: give channels for so many stages at most"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}, but it must be from 0 to below 1")

    @property
    def shapes(self) -> dict[str, Shape]:
        """Names and shapes of the parameters, in the order in which θ holds them."""
        shapes: dict[str, Shape] = {}
        for stage, C_in, C in zip(self._stages(), (self.shape[0], *self.channels), self.channels, strict=False):
            shapes[f"{stage}.conv.weight"] = (C, C_in, 3, 3)
            shapes[f"{stage}.norm.weight"] = shapes[f"{stage}.norm.bias"] = (C,)
            for block in self._blocks(stage):
                for i in (1, 2):
                    shapes[f"{block}.conv{i}.weight"] = (C, C, 3, 3)
                    shapes[f"{block}.norm{i}.weight"] = shapes[f"{block}.norm{i}.bias"] = (C,)
        shapes["linear.weight"], shapes["linear.bias"] = (self.classes, self.channels[-1]), (self.classes,)
        return shapes

    def buffers(self) -> dict[str, Tensor]:
        """Running mean and variance of every batch norm, and how many batches they have seen, before the first."""
        buffers = {}
        for stage, C in zip(self._stages(), self.channels, strict=True):
            norms = [f"{block}.norm{i}" for block in self._blocks(stage) for i in (1, 2)]
            for norm in (f"{stage}.norm", *norms):
                buffers[f"{norm}.running_mean"], buffers[f"{norm}.running_var"] = torch.zeros(C), torch.ones(C)
                buffers[f"{norm}.num_batches_tracked"] = torch.tensor(0)
        return buffers

    def forward(self, p: Mapping[str, Tensor], x: Tensor, tape: Tape) -> Tensor:
        """Logits (B, classes) for x (B, channels·height·width)."""
        sigma = ACTIVATIONS[self.activation]
        a = rows_to_images(x, self.shape).to(memory_format=torch.channels_last)  # in memory, for speed
        for stage in self._stages():
            a = tape.forward(conv2d, f"{stage}.conv", a, p[f"{stage}.conv.weight"], padding=1)
            a = tape.forward(max_pool2d, f"{stage}.pool", a, 2)
            a = normalize(f"{stage}.norm", p, a, tape)
            a = tape.forward(sigma, f"{stage}.norm.a", a)
            for block in self._blocks(stage):
                skip = a
                a = tape.forward(conv2d, f"{block}.conv1", a, p[f"{block}.conv1.weight"], padding=1)
                a = normalize(f"{block}.norm1", p, a, tape)
                a = tape.forward(sigma, f"{block}.norm1.a", a)
                a = tape.forward(conv2d, f"{block}.conv2", a, p[f"{block}.conv2.weight"], padding=1)
                a = normalize(f"{block}.norm2", p, a, tape)
                a = tape.forward(sigma, f"{block}.norm2.a", skip + a)
        a = tape.forward(adaptive_avg_pool2d, "pool", a, 1).flatten(1)
        if tape.training and self.dropout:
            keep = 1 - self.dropout
            a = tape.forward(dropout, "dropout", a, tape.noise("dropout", tuple(a.shape), keep), keep)
        return tape.forward(linear, "linear", a, p["linear.weight"], p["linear.bias"])

    def backward(self, p: Mapping[str, Tensor], d_output: Tensor, g: Receiver, tape: Tape) -> Tensor | None:
        """Hand every parameter's gradient to `g` as soon as it is known. Returns ∂C/∂x if the tape needs it."""
        sigma = ACTIVATIONS[self.activation]
        da, g["linear.weight"], g["linear.bias"] = tape.backward(linear, "linear", d_output)
        if tape.training and self.dropout:
            da = tape.backward(dropout, "dropout", da)
        da = tape.backward(adaptive_avg_pool2d, "pool", da.view(*da.shape, 1, 1))
        for stage in reversed(self._stages()):
            for block in reversed(self._blocks(stage)):
                dy = tape.backward(sigma, f"{block}.norm2.a", da)
                da = d_normalize(f"{block}.norm2", dy, g, tape)
                da, g[f"{block}.conv2.weight"] = tape.backward(conv2d, f"{block}.conv2", da)
                da = tape.backward(sigma, f"{block}.norm1.a", da)
                da = d_normalize(f"{block}.norm1", da, g, tape)
                da, g[f"{block}.conv1.weight"] = tape.backward(conv2d, f"{block}.conv1", da)
                da = tape.add("RS1", dy, da)
            da = tape.backward(sigma, f"{stage}.norm.a", da)
            da = d_normalize(f"{stage}.norm", da, g, tape)
            da = tape.backward(max_pool2d, f"{stage}.pool", da)
            need_dx = tape.need_dx or stage != "stage1"
            da, g[f"{stage}.conv.weight"] = tape.backward(conv2d, f"{stage}.conv", da, need_dx=need_dx)
        return da.flatten(1) if tape.need_dx else None

    def _stages(self) -> list[str]:
        return [f"stage{s}" for s in range(1, len(self.channels) + 1)]

    def _blocks(self, stage: str) -> list[str]:
        return [f"{stage}.block{k}" for k in range(1, self.blocks + 1)]


def normalize(name: str, p: Mapping[str, Tensor], x: Tensor, tape: Tape) -> Tensor:
    """The batch norm of this name: in training by the batch, and the running statistics move; else by these."""
    gamma, beta = p[f"{name}.weight"], p[f"{name}.bias"]
    mean, var, batches = f"{name}.running_mean", f"{name}.running_var", f"{name}.num_batches_tracked"
    old, new = tape.buffers, tape.new_buffers
    if not tape.training:
        return tape.forward(batch_norm.evaluation, name, x, gamma, beta, old[mean], old[var])
    y, new[mean], new[var] = tape.forward(batch_norm, name, x, gamma, beta, old[mean], old[var])
    new[batches] = old[batches] + 1
    return y


def d_normalize(name: str, dy: Tensor, g: Receiver, tape: Tape) -> Tensor:
    layer = batch_norm if tape.training else batch_norm.evaluation
    dx, g[f"{name}.weight"], g[f"{name}.bias"] = tape.backward(layer, name, dy)
    return dx
