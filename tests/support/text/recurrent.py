"""A recurrent network that predicts the next token, and its twin: one cell over T steps, h carried to the next batch.

    x_t = E[id_t],  h_t = cell(x_t, h_{t−1}),  output_t = W h_t + b         backpropagation through time ends at h₀

The gradients of the cell's parameters are sums over its T calls; what comes back to h_t is a sum of two:

    BT1  dh_t = (from the output at t) + (from the cell at t + 1)
"""

from dataclasses import dataclass

import torch
from torch import nn

from gallery.text import recurrent_cell
from manual_backprop.layers import embedding, linear

CELL = ("cell.weight_x", "cell.weight_h", "cell.bias")


@dataclass(frozen=True)
class Recurrent:
    vocabulary: int
    embedded: int
    hidden: int

    @property
    def shapes(self):
        V, E, N = self.vocabulary, self.embedded, self.hidden
        cell = dict(zip(CELL, ((N, E), (N, N), (N,)), strict=True))
        return {"embedding.weight": (V, E), **cell, "linear.weight": (V, N), "linear.bias": (V,)}

    def buffers(self):
        return {}

    def forward(self, p, x, tape):
        """Logits (B·T, vocabulary) for ids x (B, T)."""
        embedded = tape.forward(embedding, "embedding", x, p["embedding.weight"])
        h = tape.memory.get("h", embedded.new_zeros(len(x), self.hidden))
        states = []
        for t in range(x.shape[1]):
            h = tape.forward(recurrent_cell, f"cell[{t}]", embedded[:, t], h, *(p[name] for name in CELL))
            states.append(h)
        tape.new_memory["h"] = h
        states = torch.stack(states, 1).flatten(0, 1)
        return tape.forward(linear, "linear", states, p["linear.weight"], p["linear.bias"])

    def backward(self, p, d_output, g, tape):
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
    def __init__(self, embedded, hidden):
        super().__init__()
        self.weight_x = nn.Parameter(torch.zeros(hidden, embedded))
        self.weight_h = nn.Parameter(torch.zeros(hidden, hidden))
        self.bias = nn.Parameter(torch.zeros(hidden))

    def forward(self, x, h):
        return torch.tanh(nn.functional.linear(x, self.weight_x, self.bias) + nn.functional.linear(h, self.weight_h))


class RecurrentTwin(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.embedding = nn.Embedding(model.vocabulary, model.embedded)
        self.cell = Cell(model.embedded, model.hidden)
        self.linear = nn.Linear(model.hidden, model.vocabulary)

    def forward(self, ids, memory=None):
        memory = {} if memory is None else memory
        x, states = self.embedding(ids), []
        h = memory.get("h", x.new_zeros(len(ids), self.linear.in_features))
        for x_t in x.unbind(1):
            h = self.cell(x_t, h)
            states.append(h)
        memory["h"] = h
        return self.linear(torch.stack(states, 1).flatten(0, 1))

    def observed(self):
        return {"cell[]" if name == "cell" else name: module for name, module in self.named_children()}
