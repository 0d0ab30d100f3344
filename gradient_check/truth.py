"""What autograd through an oracle's forward says that the gradients are, and how certain that is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradient_check.oracles import autograd_gradients, moved_by_rounding

DRAWS = 2  # of rounding


@dataclass(frozen=True)
class Truth:
    """Gradients by name, in float64, and in the dtype on trial where autograd has it; the oracle's own outputs."""

    gradients: Mapping[str, Tensor]
    expected: Mapping[str, Tensor] | None
    outputs: tuple[Tensor, ...]

    @property
    def finite(self) -> bool:
        return all(bool(t.isfinite().all()) for t in (*self.gradients.values(), *self.outputs))


@dataclass(frozen=True)
class Autograd:
    """Jᵀ d_output through `forward`, for the arguments at `positions`, whose gradients are called `names`."""

    forward: Callable[..., Any]
    positions: Sequence[int]
    names: Sequence[str]

    def truth(self, arguments: Sequence[Any], cotangents: Sequence[Tensor]) -> Truth:
        """Whatever `forward` raises where it was not made for autograd or for float64 passes through."""
        arguments, cotangents = plain(arguments), plain(cotangents)
        gradients = self._gradients(doubled(arguments), doubled(cotangents))
        with torch.no_grad():
            outputs = outputs_at(self.forward, doubled(arguments))
        expected: dict[str, Tensor] | None = gradients
        if any(arguments[i].dtype != torch.float64 for i in self.positions):
            try:
                expected = self._gradients(arguments, cotangents)
            except Exception:  # not implemented at that dtype: there is no autograd to ask
                expected = None
        return Truth(gradients, expected, outputs)

    def moved(self, truth: Truth, arguments: Sequence[Any], cotangents: Sequence[Tensor]) -> dict[str, Tensor]:
        """How far one unit of rounding in arguments and cotangents moves each element of the truth."""
        arguments, cotangents = doubled(plain(arguments)), doubled(plain(cotangents))
        moved = {name: torch.zeros_like(gradient) for name, gradient in truth.gradients.items()}
        for draw in range(DRAWS):
            nudged = [moved_by_rounding(v, draw) if i in self.positions else v for i, v in enumerate(arguments)]
            again = self._gradients(nudged, [moved_by_rounding(c, draw) for c in cotangents])
            for name, gradient in again.items():
                moved[name] = torch.maximum(moved[name], (gradient - truth.gradients[name]).abs().nan_to_num(0.0))
        return moved

    def _gradients(self, arguments: Sequence[Any], cotangents: Sequence[Tensor]) -> dict[str, Tensor]:
        found = autograd_gradients(self.forward, arguments, self.positions, cotangents)
        return dict(zip(self.names, found, strict=True))


def outputs_at(forward: Callable[..., Any], arguments: Sequence[Any]) -> tuple[Tensor, ...]:
    made = forward(*arguments)
    return tuple(made) if isinstance(made, tuple | list) else (made,)


def plain(values: Sequence[Any]) -> list[Any]:
    """Contiguous copies, made outside of inference mode so that autograd may see them."""
    return [v.detach().clone(memory_format=torch.contiguous_format) if isinstance(v, Tensor) else v for v in values]


def doubled(values: Sequence[Any]) -> list[Any]:
    """In float64 where they are of floating point."""
    return [v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for v in values]
