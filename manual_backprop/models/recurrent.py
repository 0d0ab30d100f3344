"""A recurrent network: layers over a sequence, and an affine map of what they remember.

    pictures  x (B, C·H·W): the rows are the steps, H of them with C·W numbers each
              logits (B, classes) from the last state h of the last layer
    text      ids (B, T): the characters are the steps, each a row of the embedding
              logits (B·T, V) from the states h_t of the last layer, one row for each step: what comes next

Each layer reads the states h_t of the one below. With `bidirectional` it reads its sequence in both directions, by
weights of their own, and its outputs stand side by side: (B, T, 2N).

Of a text the states after a segment are the tape's new memory, from which the next segment goes on.

The equations are those of the layers (layers/rnn.py, lstm.py, gru.py), and two of the model itself:

    BI1  dx = (from the forward direction) + (from the reverse direction)
    TR1  dh = dc = 0 after the last step of a segment       the next segment hands nothing back: backpropagation
                                                            through time is truncated there, on purpose

TR1 also holds for outputs that nothing reads: those of a picture's last layer before its last step, and the cells.

Sources: Elman 1990; Hochreiter and Schmidhuber 1997; Cho et al. 2014; Schuster and Paliwal 1997 (both directions).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from manual_backprop.layers import dropout, embedding, gru, linear, lstm, rnn
from manual_backprop.models.images import rows_to_images
from manual_backprop.parameters import Receiver, Shape
from manual_backprop.tape import Tape

CELLS: dict[str, Any] = {"rnn": rnn, "lstm": lstm, "gru": gru}
GATES = {"rnn": 1, "lstm": 4, "gru": 3}  # blocks of N rows in the weights
PARAMETERS = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")  # as of nn.LSTM and its kind


@dataclass(frozen=True)
class Recurrent:
    """`depth` layers of `width` units for pictures of `shape` (channels, height, width), or for text: `shape` is ().

    `classes` is the number of classes, or of different ids. `activation` is that of rnn, tanh or relu. An id's row of
    the embedding has `embedded` numbers. `dropout` is the probability with which training drops an output of a layer
    before the next one reads it.

    Raises ValueError for an unknown cell or activation, sizes below 1, a dropout outside of [0, 1), and for a text that
    would be read in both directions.
    """

    cell: str
    shape: tuple[int, ...]
    classes: int
    width: int = 128
    depth: int = 1
    bidirectional: bool = False
    activation: str = "tanh"
    embedded: int = 64
    dropout: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        if self.cell not in CELLS:
            raise ValueError(f"{self.cell!r} is not a cell; there are {', '.join(CELLS)}")
        if self.activation not in ("tanh", "relu") or (self.cell != "rnn" and self.activation != "tanh"):
            raise ValueError(
                f"the activation of {self.cell} is {self.activation!r}, but rnn has tanh or relu, others tanh"
            )
        if len(self.shape) not in (0, 3) or min(*self.shape, self.classes, self.width, self.depth, self.embedded) < 1:
            raise ValueError(
                f"shape {self.shape}, {self.classes} classes and {self.depth} layers of {self.width} units make no "
                "network: sizes are from 1, and the shape is (channels, height, width), or () for text"
            )
        if self.bidirectional and self.reads_text:
            raise ValueError("a network that predicts the next character may not read in both directions")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}, but it must be from 0 to below 1")

    @property
    def reads_text(self) -> bool:
        return not self.shape

    @property
    def shapes(self) -> dict[str, Shape]:
        """Names and shapes of the parameters, in the order in which θ holds them."""
        shapes: dict[str, Shape] = {}
        if self.reads_text:
            inputs = self.embedded
            shapes["embedding.weight"] = (self.classes, self.embedded)
        else:
            inputs = self.shape[0] * self.shape[2]
        directions = 2 if self.bidirectional else 1
        rows = GATES[self.cell] * self.width
        for layer in self._layers():
            for _, names in self._directions(layer):
                shapes |= zip(names, ((rows, inputs), (rows, self.width), (rows,), (rows,)), strict=True)
            inputs = directions * self.width
        return shapes | {"linear.weight": (self.classes, inputs), "linear.bias": (self.classes,)}

    def buffers(self) -> dict[str, Tensor]:
        return {}

    def forward(self, p: Mapping[str, Tensor], x: Tensor, tape: Tape) -> Tensor:
        """Logits (B, classes) for x (B, channels·height·width), or (B·T, V) for ids x (B, T)."""
        cell = CELLS[self.cell]
        options = {"activation": self.activation} if self.cell == "rnn" else {}
        a = tape.forward(embedding, "embedding", x, p["embedding.weight"]) if self.reads_text else self._steps(x)
        last: list[Tensor] = []
        for layer in self._layers():
            if tape.training and self.dropout and last:
                keep = 1 - self.dropout
                noise = tape.noise(f"{layer}.dropout", tuple(a.shape), keep)
                a = tape.forward(dropout, f"{layer}.dropout", a, noise, keep)
            outputs, last = [], []
            for call, names in self._directions(layer):
                before = self._states(call, a, tape)
                weights = [p[name] for name in names]
                y, *states = tape.forward(
                    cell, call, a, *before, *weights, reverse=call.endswith("_reverse"), **options
                )
                outputs.append(y)
                last.append(states[0])
                if self.reads_text:
                    tape.new_memory.update(zip(self._memory(call), states, strict=True))
            a = torch.cat(outputs, dim=2) if self.bidirectional else y
        read = a.flatten(0, 1) if self.reads_text else torch.cat(last, dim=1)
        return tape.forward(linear, "linear", read, p["linear.weight"], p["linear.bias"])

    def backward(self, p: Mapping[str, Tensor], d_output: Tensor, g: Receiver, tape: Tape) -> Tensor | None:
        """Hand every parameter's gradient to `g` as soon as it is known. Returns ∂C/∂x if the tape needs it."""
        cell, width = CELLS[self.cell], self.width
        d_read, g["linear.weight"], g["linear.bias"] = tape.backward(linear, "linear", d_output)
        if self.reads_text:
            ids, *_ = tape.caches["embedding"]
            da, dh = d_read.view(*ids.shape, width), self._nothing((len(ids), width), d_read, tape)
        else:
            da, dh = self._nothing((len(d_read), self.shape[1], d_read.shape[1]), d_read, tape), d_read
        for layer in reversed(self._layers()):
            parts = []
            for k, (call, names) in enumerate(self._directions(layer)):
                own = slice(k * width, (k + 1) * width)
                others = [self._nothing((len(dh), width), dh, tape)] * (len(self._memory(call)) - 1)
                need_dx = tape.need_dx or self.reads_text or layer != "layer1"
                dx, *gradients = tape.backward(cell, call, da[:, :, own], dh[:, own], *others, need_dx=need_dx)
                parts.append(dx)
                for name, gradient in zip(names, gradients[-len(names) :], strict=True):
                    g[name] = gradient
            if not need_dx:
                return None
            da = tape.add("BI1", *parts) if self.bidirectional else dx
            dh = self._nothing(dh.shape, dh, tape)
            if tape.training and self.dropout and layer != "layer1":
                da = tape.backward(dropout, f"{layer}.dropout", da)
        if self.reads_text:
            g["embedding.weight"] = tape.backward(embedding, "embedding", da)
            return None
        return self._pictures(da)

    def _layers(self) -> list[str]:
        return [f"layer{l}" for l in range(1, self.depth + 1)]

    def _directions(self, layer: str) -> list[tuple[str, list[str]]]:
        """Of each direction: its call's name and its parameters' names."""
        suffixes = ["", "_reverse"] if self.bidirectional else [""]
        return [(layer + suffix, [f"{layer}.{name}{suffix}" for name in PARAMETERS]) for suffix in suffixes]

    def _memory(self, call: str) -> list[str]:
        """Names of the states of a call: h and, of an LSTM, c."""
        return [f"{call}.{state}" for state in CELLS[self.cell].OUTPUTS[1:]]

    def _states(self, call: str, a: Tensor, tape: Tape) -> list[Tensor]:
        """The states before the first step: zero where the memory has none."""
        zero = a.new_zeros(len(a), self.width)
        return [tape.memory.get(name, zero) for name in self._memory(call)]

    def _nothing(self, shape: Shape, like: Tensor, tape: Tape) -> Tensor:
        """δ of an output that nothing reads."""
        zero = like.new_zeros(()).expand(shape)
        tape.name("TR1", zero)
        return zero

    def _steps(self, x: Tensor) -> Tensor:
        """(B, C·H·W) as (B, H, C·W): step t is row t of all channels."""
        return rows_to_images(x, self.shape).transpose(1, 2).flatten(2)

    def _pictures(self, dx: Tensor) -> Tensor:
        """(B, H, C·W) as (B, C·H·W)."""
        channels, _, columns = self.shape
        return dx.unflatten(2, (channels, columns)).transpose(1, 2).flatten(1)
