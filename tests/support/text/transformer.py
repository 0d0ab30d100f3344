"""One transformer block that predicts the next token, and its twin: tied embedding, causal attention, dropout.

    x = E[ids] + places,  x += project(attention(LN(x))),  x += out(gelu(fc(LN(x)))),  output = LN(x) Eᵀ

E is used twice, and its gradient is the sum of both. In evaluation the keys and values of earlier tokens may come in
by the tape's memory, and x is then what follows them.

    TX1  the gradient of what goes around a part of the block as well as through it: the sum of both
    TX2  dE = (from the output) + (from the embedding)
"""

from dataclasses import dataclass

import torch
from torch import nn

from gallery.text import attention, matmul
from manual_backprop.layers import dropout, embedding, layer_norm, linear
from manual_backprop.layers.activations import ACTIVATIONS
from reference.mlp import Dropout

GELU = ACTIVATIONS["gelu"]


@dataclass(frozen=True)
class Transformer:
    vocabulary: int
    context: int
    width: int
    heads: int
    dropout: float = 0.0

    @property
    def zeros(self):
        """A bias of the keys adds the same to all scores of a query, and softmax takes it away."""
        return {"k.bias": ["k"]}

    @property
    def shapes(self):
        V, C = self.vocabulary, self.width
        sizes = {**dict.fromkeys(("q", "k", "v", "project"), (C, C)), "fc": (4 * C, C), "out": (C, 4 * C)}
        shapes = {"wte.weight": (V, C), "wpe.weight": (self.context, C)}
        for name in ("norm1", "norm2", "norm3"):
            shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (C,)
        for name, size in sizes.items():
            shapes[f"{name}.weight"], shapes[f"{name}.bias"] = size, size[:1]
        return shapes

    def buffers(self):
        return {}

    def forward(self, p, x, tape):
        """Logits (B·T, vocabulary) for ids x (B, T)."""
        before = tape.memory["k"].shape[2] if tape.memory else 0
        places = torch.arange(before, before + x.shape[1], device=x.device).expand_as(x)
        x = tape.forward(embedding, "wte", x, p["wte.weight"]) + tape.forward(embedding, "wpe", places, p["wpe.weight"])
        x = self._dropped("wte.dropout", x, tape)
        a = tape.forward(layer_norm, "norm1", x, *of("norm1", p))
        q, k, v = (self._heads(tape.forward(linear, name, a, *of(name, p))) for name in "qkv")
        if not tape.training:
            k, v = (torch.cat([tape.memory[name], new], 2) if before else new for name, new in (("k", k), ("v", v)))
            tape.new_memory.update(k=k, v=v)
        y = tape.forward(attention, "attention", q, k, v, *self._noise("attention", (*q.shape[:3], k.shape[2]), tape))
        y = tape.forward(linear, "project", y.transpose(1, 2).flatten(2), *of("project", p))
        x = x + self._dropped("project.dropout", y, tape)
        a = tape.forward(layer_norm, "norm2", x, *of("norm2", p))
        z = tape.forward(linear, "fc", a, *of("fc", p))
        x = x + tape.forward(linear, "out", tape.forward(GELU, "fc.a", z), *of("out", p))
        a = tape.forward(layer_norm, "norm3", x, *of("norm3", p))
        return tape.forward(matmul, "head", a.flatten(0, 1), p["wte.weight"])

    def backward(self, p, d_output, g, tape):
        da, dE = tape.backward(matmul, "head", d_output)
        ids, *_ = tape.caches["wte"]
        dx, g["norm3.weight"], g["norm3.bias"] = tape.backward(layer_norm, "norm3", da.view(*ids.shape, -1))
        da, g["out.weight"], g["out.bias"] = tape.backward(linear, "out", dx)
        dz = tape.backward(GELU, "fc.a", da)
        da, g["fc.weight"], g["fc.bias"] = tape.backward(linear, "fc", dz)
        da, g["norm2.weight"], g["norm2.bias"] = tape.backward(layer_norm, "norm2", da)
        dx = tape.add("TX1", dx, da)
        dy = self._undropped("project.dropout", dx, tape)
        dy, g["project.weight"], g["project.bias"] = tape.backward(linear, "project", dy)
        d_heads = tape.backward(attention, "attention", self._heads(dy))
        da = torch.zeros_like(dx)
        for name, d, label in zip("qkv", d_heads, attention.EQUATIONS, strict=True):
            dz = d.transpose(1, 2).flatten(2)  # a copy
            tape.name(label, dz)
            through, g[f"{name}.weight"], g[f"{name}.bias"] = tape.backward(linear, name, dz)
            da = tape.add("TX1", da, through)
        da, g["norm1.weight"], g["norm1.bias"] = tape.backward(layer_norm, "norm1", da)
        dx = self._undropped("wte.dropout", tape.add("TX1", dx, da), tape)
        g["wpe.weight"] = tape.backward(embedding, "wpe", dx)
        g["wte.weight"] = dE + tape.backward(embedding, "wte", dx)  # TX2

    def _heads(self, x):
        """(B, T, C) as (B, heads, T, C/heads)."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def _noise(self, call, shape, tape):
        keep = 1 - self.dropout
        return (tape.noise(call, shape, keep), keep) if tape.training and self.dropout else ()

    def _dropped(self, call, x, tape):
        noise = self._noise(call, tuple(x.shape), tape)
        return tape.forward(dropout, call, x, *noise) if noise else x

    def _undropped(self, call, dx, tape):
        return tape.backward(dropout, call, dx) if tape.training and self.dropout else dx


def of(name, p):
    return p[f"{name}.weight"], p[f"{name}.bias"]


class Attention(nn.Module):
    """Written out, because dropout's mask comes from outside."""

    def __init__(self, dropout):
        super().__init__()
        self.dropout = Dropout("attention", dropout)

    def forward(self, q, k, v, noise=None):
        T = q.shape[2]
        scores = q @ k.transpose(2, 3) / q.shape[3] ** 0.5
        hidden = torch.ones(T, T, dtype=torch.bool).triu(1)
        return self.dropout(scores.masked_fill(hidden, float("-inf")).softmax(dim=-1), noise) @ v


class Head(nn.Module):
    def forward(self, x, E):
        return nn.functional.linear(x, E)


class TransformerTwin(nn.Module):
    def __init__(self, model):
        super().__init__()
        C = model.width
        self.heads = model.heads
        self.wte, self.wpe = nn.Embedding(model.vocabulary, C), nn.Embedding(model.context, C)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(C), nn.LayerNorm(C), nn.LayerNorm(C)
        self.q, self.k, self.v, self.project = (nn.Linear(C, C) for _ in range(4))
        self.fc, self.gelu, self.out = nn.Linear(C, 4 * C), nn.GELU(), nn.Linear(4 * C, C)
        self.attention = Attention(model.dropout)
        self.drop1, self.drop2 = (Dropout(f"{name}.dropout", model.dropout) for name in ("wte", "project"))
        self.head = Head()

    def forward(self, ids, noise=None):
        drops = self.training and self.drop1.p > 0
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]).expand_as(ids))
        x = self.drop1(x, noise) if drops else x
        a = self.norm1(x)
        q, k, v = (layer(a).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = self.project(self.attention(q, k, v, noise if drops else None).transpose(1, 2).flatten(2))
        x = x + (self.drop2(y, noise) if drops else y)
        x = x + self.out(self.gelu(self.fc(self.norm2(x))))
        return self.head(self.norm3(x).flatten(0, 1), self.wte.weight)

    def observed(self):
        names = {"gelu": "fc.a", "drop1": "wte.dropout", "drop2": "project.dropout"}
        return {names.get(name, name): module for name, module in self.named_children()}
