"""What a hand-written model offers to whoever trains or verifies it."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from manual_backprop.parameters import Receiver, Shape
from manual_backprop.tape import Tape

Buffers = Mapping[str, Tensor]


class Model(Protocol):
    """What a model of manual_backprop/models offers (docs/contracts.md).

    Where a gradient is zero in exact arithmetic (a bias before batch norm), it also has `zeros`, which maps its name to
    those of the calls whose δs cancel in it.
    """

    @property
    def shapes(self) -> Mapping[str, Shape]: ...

    def buffers(self) -> Buffers: ...

    def forward(self, p: Mapping[str, Tensor], x: Tensor, tape: Tape) -> Tensor: ...

    def backward(self, p: Mapping[str, Tensor], d_output: Tensor, g: Receiver, tape: Tape) -> Tensor | None: ...
