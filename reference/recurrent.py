"""The twin of manual_backprop/models/recurrent.py."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from reference.mlp import Dropout, Noise

Memory = dict[str, Tensor]


class ByDirection(nn.RNNBase):
    """One layer, each direction by itself: y (B, T, N), h and, of an LSTM, c (B, N)."""

    def forward(self, x: Tensor, states: Sequence[Tensor] | None = None) -> list[list[Tensor]]:
        """`states` are h and, of an LSTM, c before the first step, (directions, B, N); zero without."""
        given = states if states is None or len(states) > 1 else states[0]
        y, last = super().forward(x, given)
        after = last if isinstance(last, tuple) else (last,)
        directions = zip(y.split(self.hidden_size, dim=2), *after, strict=True)
        return [list(outputs) for outputs in directions]


class RNN(ByDirection, nn.RNN):  # type: ignore[misc]  # forward returns more
    states = ("h",)


class LSTM(ByDirection, nn.LSTM):  # type: ignore[misc]  # forward returns more
    states = ("h", "c")


class GRU(ByDirection, nn.GRU):  # type: ignore[misc]  # forward returns more
    states = ("h",)


CELLS: dict[str, Any] = {"rnn": RNN, "lstm": LSTM, "gru": GRU}


class Recurrent(nn.Module):
    """`layer1`, … and `linear`; behind an `embedding` for text, where `shape` is ().

    In training what a layer reads of the one below is dropped with probability `dropout`, by masks from `noise`.
    """

    def __init__(
        self,
        cell: str,
        shape: Sequence[int],
        classes: int,
        width: int = 128,
        depth: int = 1,
        bidirectional: bool = False,
        activation: str = "tanh",
        embedded: int = 64,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if shape:
            self.pictures, inputs = nn.Unflatten(1, tuple(shape)), shape[0] * shape[2]
        else:
            self.embedding, inputs = nn.Embedding(classes, embedded), embedded
        options = {"nonlinearity": activation} if cell == "rnn" else {}
        self.depth, self.names = depth, CELLS[cell].states
        for l in range(1, depth + 1):
            layer = CELLS[cell](inputs, width, batch_first=True, bidirectional=bidirectional, **options)
            self.add_module(f"layer{l}", layer)
            if l > 1:
                self.add_module(f"dropout{l}", Dropout(f"layer{l}.dropout", dropout))
            inputs = width * (2 if bidirectional else 1)
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x: Tensor, noise: Noise | None = None, memory: Memory | None = None) -> Tensor:
        reads_text = hasattr(self, "embedding")
        memory = {} if memory is None else memory
        a = self.embedding(x) if reads_text else self.pictures(x).transpose(1, 2).flatten(2)
        last: list[Tensor] = []
        for l in range(1, self.depth + 1):
            names = [f"layer{l}.{state}" for state in self.names]
            dropout = self.get_submodule(f"dropout{l}") if l > 1 else None
            if self.training and dropout is not None and dropout.p:
                a = dropout(a, noise)
            before = [memory[name][None] for name in names] if memory.get(names[0]) is not None else None
            directions = self.get_submodule(f"layer{l}")(a, before)
            a, last = torch.cat([y for y, *_ in directions], dim=2), [h for _, h, *_ in directions]
            if reads_text:
                memory.update(zip(names, directions[0][1:], strict=True))
        return self.linear(a.flatten(0, 1) if reads_text else torch.cat(last, dim=1))

    def observed(self) -> dict[str, nn.Module | tuple[nn.Module, int]]:
        """The module of each output of the hand-written model's calls, by the output's name."""
        observed: dict[str, nn.Module | tuple[nn.Module, int]] = {}
        for name, module in self.named_children():
            if isinstance(module, ByDirection):
                calls = (name, f"{name}_reverse") if module.bidirectional else (name,)
                outputs = [f"{call}.{output}" for call in calls for output in ("y", *self.names)]
                observed |= {output: (module, k) for k, output in enumerate(outputs)}
            elif not isinstance(module, nn.Unflatten):
                observed[f"layer{name.removeprefix('dropout')}.dropout" if isinstance(module, Dropout) else name] = (
                    module
                )
        return observed
