"""What a hand-written model offers to whoever trains or verifies it."""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from manual_backprop.parameters import NOWHERE, Receiver, Shape

Buffers = Mapping[str, Tensor]


class Model(Protocol):
    """What a model of manual_backprop/models offers (docs/contracts.md)."""

    @property
    def title(self) -> str: ...

    def kind(self, layer: str) -> str: ...

    @property
    def dropped(self) -> tuple[int, ...]: ...

    @property
    def shapes(self) -> Mapping[str, Shape]: ...

    def initial_state(self) -> Buffers: ...

    def forward(
        self,
        params: Mapping[str, Tensor],
        x: Tensor,
        *,
        state: Buffers | None = None,
        noise: Any = None,
        training: bool = False,
        outputs: Receiver = NOWHERE,
        activations: Receiver = NOWHERE,
    ) -> tuple[Tensor, Any, Buffers]: ...

    def backward(
        self,
        params: Mapping[str, Tensor],
        caches: Any,
        d_output: Tensor,
        gradients: Receiver,
        *,
        deltas: Receiver = NOWHERE,
        need_dx: bool = False,
    ) -> Tensor | None: ...

    def equation(self, name: str) -> str: ...
