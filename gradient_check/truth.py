"""What autograd through an oracle's forward says that the gradients are, and how certain that is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gradient_check.oracles import autograd_gradients, moved_by, outputs_of

EPSILON = torch.finfo(torch.float64).eps
NEAR = 1 / 64  # how far off rounding is drawn anew, also where a saturated function moves little


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
class Doubts:
    """How uncertain the truth and its oracle are, element by element and by name."""

    moved: dict[str, Tensor] = field(default_factory=dict)  # the truth, by one unit of float64's rounding
    errors: dict[str, Tensor] = field(default_factory=dict)  # the oracle's in the dtype on trial, at inputs nearby


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
            outputs = outputs_of(self.forward(*doubled(arguments)))[: len(cotangents)]  # a cache may follow
        expected: dict[str, Tensor] | None = gradients
        if any(arguments[i].dtype != torch.float64 for i in self.positions):
            try:
                expected = self._gradients(arguments, cotangents)
            except Exception:  # not implemented at that dtype: there is no autograd to ask
                expected = None
        return Truth(gradients, expected, outputs)

    def doubts(self, truth: Truth, arguments: Sequence[Any], cotangents: Sequence[Tensor]) -> Doubts:
        """Found by moving arguments and cotangents: by one unit of rounding, or far enough to be rounded anew."""
        arguments, cotangents = plain(arguments), plain(cotangents)
        doubts = Doubts()
        for draw in range(2):
            again = self._gradients(*self._moved(EPSILON, doubled(arguments), doubled(cotangents), draw))
            _keep_most(doubts.moved, again, truth.gradients)
        if truth.expected is not None and truth.expected is not truth.gradients:
            for draw in range(4):
                near, fed = self._moved(NEAR, arguments, cotangents, draw)
                exact = self._gradients(doubled(near), doubled(fed))
                _keep_most(doubts.errors, self._gradients(near, fed), exact)
        return doubts

    def _moved(
        self, part: float, arguments: Sequence[Any], cotangents: Sequence[Tensor], draw: int
    ) -> tuple[list[Any], list[Tensor]]:
        moved = [moved_by(part, v, draw) if i in self.positions else v for i, v in enumerate(arguments)]
        return moved, [moved_by(part, c, draw) for c in cotangents]

    def _gradients(self, arguments: Sequence[Any], cotangents: Sequence[Tensor]) -> dict[str, Tensor]:
        found = autograd_gradients(self.forward, arguments, self.positions, cotangents)
        return dict(zip(self.names, found, strict=True))


def _keep_most(most: dict[str, Tensor], found: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> None:
    for name, gradient in found.items():
        error = (gradient.double() - exact[name]).abs().nan_to_num(0.0, 0.0)
        most[name] = torch.maximum(most.get(name, error), error)


def plain(values: Sequence[Any]) -> list[Any]:
    """Contiguous copies, made outside of inference mode so that autograd may see them."""
    return [v.detach().clone(memory_format=torch.contiguous_format) if isinstance(v, Tensor) else v for v in values]


def doubled(values: Sequence[Any]) -> list[Any]:
    """In float64 where they are of floating point."""
    return [v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for v in values]
