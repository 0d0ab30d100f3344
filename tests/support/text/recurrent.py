"""A recurrent network that predicts the next token, and its twin: one cell over T steps, h carried to the next batch.

    x_t = E[id_t],  h_t = cell(x_t, h_{t−1}),  output_t = W h_t + b         backpropagation through time ends at h₀

The gradients of the cell's parameters are sums over its T calls; what comes back to h_t is a sum of two:

    BT1  dh_t = (from the output at t) + (from the cell at t + 1)
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from manual_backprop.layers import linear
from manual_backprop.parameters import Receiver, Shape
from manual_backprop.tape import Tape
from tests.support.text.layers import embedding, recurrent_cell

CELL = ("cell.weight_x", "cell.weight_h", "cell.bias")


@dataclass(frozen=True)
class Recurrent:
    vocabulary: int
    embedded: int
    hidden: int

    @property
    def shapes(self) -> dict[str, Shape]:
        return {
            "embedding.weight": (self.vocabulary, self.embedded),
            "cell.weight_x": (self.hidden, self.embedded),
            "cell.weight_h": (self.hidden, self.hidden),
            "cell.bias": (self.hidden,),
            "linear.weight": (self.vocabulary, self.hidden),
            "linear.bias": (self.vocabulary,),
        }

    def buffers(self) -> dict[str, Tensor]:
        return {}

    def forward(self, p: Mapping[str, Tensor], x: Tensor, tape: Tape) -> Tensor:
        """Logits (B·T, vocabulary) for ids x (B, T)."""
        embedded = tape.forward(embedding, "embedding", x, p["embedding.weight"])
        h = tape.memory.get("h", embedded.new_zeros(len(x), self.hidden))
        states = []
        for t in range(x.shape[1]):
            h = tape.forward(recurrent_cell, f"cell[{t}]", embedded[:, t], h, *(p[name] for name in CELL))
            states.append(h)
        tape.new_memory["h"] = h
        return tape.forward(
            linear, "linear", torch.stack(states, 1).flatten(0, 1), p["linear.weight"], p["linear.bias"]
        )

    def backward(self, p: Mapping[str, Tensor], d_output: Tensor, g: Receiver, tape: Tape) -> None:
        d_states, g["linear.weight"], g["linear.bias"] = tape.backward(linear, "linear", d_output)
        B, T = tape.caches["embedding"][0].shape
        d_states = d_states.view(B, T, self.hidden)
        dh, dx = torch.zeros_like(d_states[:, 0]), []
        totals = [torch.zeros_like(p[name]) for name in CELL]
        for t in reversed(range(T)):
            dh = tape.add("BT1", d_states[:, t], dh)
            dx_t, dh, *gradients = tape.backward(recurrent_cell, f"cell[{t}]", dh)
            totals = [total + gradient for total, gradient in zip(totals, gradients, strict=True)]
            dx.append(dx_t)
        for name, total in zip(CELL, totals, strict=True):
            g[name] = total
        d_embedded = torch.stack(dx[::-1], 1)
        tape.name("RN1", d_embedded)
        g["embedding.weight"] = tape.backward(embedding, "embedding", d_embedded)


class Cell(nn.Module):
    def __init__(self, embedded: int, hidden: int) -> None:
        super().__init__()
        self.weight_x = nn.Parameter(torch.zeros(hidden, embedded))
        self.weight_h = nn.Parameter(torch.zeros(hidden, hidden))
        self.bias = nn.Parameter(torch.zeros(hidden))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(nn.functional.linear(x, self.weight_x, self.bias) + nn.functional.linear(h, self.weight_h))


class RecurrentTwin(nn.Module):
    def __init__(self, model: Recurrent) -> None:
        super().__init__()
        self.embedding = nn.Embedding(model.vocabulary, model.embedded)
        self.cell = Cell(model.embedded, model.hidden)
        self.linear = nn.Linear(model.hidden, model.vocabulary)
        self.hidden = model.hidden

    def forward(self, ids: Tensor, memory: dict[str, Tensor] | None = None) -> Tensor:
        memory = {} if memory is None else memory
        x = self.embedding(ids)
        h = memory.get("h", x.new_zeros(len(ids), self.hidden))
        states = []
        for x_t in x.unbind(1):
            h = self.cell(x_t, h)
            states.append(h)
        memory["h"] = h
        return self.linear(torch.stack(states, 1).flatten(0, 1))

    def observed(self) -> dict[str, nn.Module]:
        return {"cell[]" if name == "cell" else name: module for name, module in self.named_children()}
