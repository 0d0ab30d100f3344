"""One forward and backward pass of what is on trial, and what belongs to it: all that an oracle is asked about."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from gradient_check.oracles import longest_sum
from gradient_check.subject import Subject
from gradient_check.tolerances import Leeway

LARGE = 2_000_000  # elements from which the costs of an oracle count


@dataclass(frozen=True)
class Said:
    """What the caller says of the gradients, by their names."""

    titles: Mapping[str, str]
    zeros: frozenset[str] = frozenset()  # zero in exact arithmetic
    candidates: Mapping[str, Tensor] = field(default_factory=dict)  # for a diagnosis
    leeway: Leeway = Leeway()  # noqa: RUF009  it is frozen


@dataclass(frozen=True)
class Run:
    """Gradients go by name.

    `ordinary` has the root mean squares of those of the example and of its outputs, "output" or "output 0" …, and
    `floors` what an element may be off by because those are rounded so; for the example both are empty.
    """

    subject: Subject
    arguments: Sequence[Any]
    cotangents: Sequence[Tensor]
    outputs: Sequence[Tensor]
    gradients: Mapping[str, Tensor | None]
    said: Said
    case: str = ""  # what was fed; empty for the example
    group: str = ""  # of cases
    ordinary: Mapping[str, float] = field(default_factory=dict)
    floors: Mapping[str, float] = field(default_factory=dict)

    @property
    def longest_sum(self) -> int:
        """How many products may have been added up in one element."""
        return longest_sum((*self.arguments, *self.outputs))

    @property
    def is_well_known(self) -> bool:
        """Whether an oracle's own errors are asked for at once: in the example and in long sums."""
        return self.group in ("", "rows")

    @property
    def is_large(self) -> bool:
        return self.longest_sum > LARGE

    def position(self, name: str) -> int:
        """Of the argument that this is the gradient of."""
        return self.subject.differentiable[self.subject.gradient_names.index(name)]

    def argument(self, name: str) -> Tensor:
        value: Tensor = self.arguments[self.position(name)]
        return value
