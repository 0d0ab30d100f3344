"""What an oracle claims of gradients: ⟨gradient, u⟩ = s ± slack, where u is an element, or a direction.

tolerances.py says how large a slack is, and each claim where its slack comes from. verdict.py holds gradients against
claims, and does not know who made them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf, sqrt

import torch
from torch import Tensor

from gradient_check.lines import Slope
from gradient_check.tolerances import (
    SCATTERING,
    VISIBLE,
    Leeway,
    Tolerance,
    floor_of,
    magnified,
    ratio,
    tolerance,
    tolerance_beside,
    tolerance_of_sums,
)

MARGIN = 16  # directions notice an element once it is off by this many tolerances (differences.py)
SCATTER = 4  # so many times as far as it scatters an error may be
TRIVIAL = "nothing is shown: it should be zero everywhere; choose another example, or declare it in `zeros`"


@dataclass(frozen=True)
class Claims:
    """Of one tensor, element by element; and of all its elements together, through the norm.

    `value` is s. Where forward has a kink, `low` and `high` are the slopes of its two sides, and any value between them
    is right: those elements, `kinks`, are not judged. Errors are relative to `size`, that of an element to size/√n.
    """

    name: str
    label: str
    oracle: str
    value: Tensor  # in float64, on the CPU
    dtype: torch.dtype  # of what is on trial
    device: torch.device
    limit: Tolerance
    size: float
    blind: str = ""  # why to agree with these claims shows nothing
    trivial: bool = False  # they are all zero
    low: Tensor | None = None
    high: Tensor | None = None
    kinks: Tensor | None = None  # which elements
    inconclusive: str = ""  # why they contradict other oracles, which are surer

    @property
    def rms(self) -> float:
        return self.size / sqrt(max(self.value.numel(), 1))

    def distances(self, actual: Tensor) -> Tensor:
        """How far each element of `actual` lies outside of what is claimed, before any slack."""
        if self.low is None or self.high is None:
            return (actual - self.value).abs_()
        return torch.maximum(self.low - actual, actual - self.high).clamp(min=0.0)

    def disputed(self, actual: Tensor) -> Tensor:
        """The elements that lie outside."""
        return ~(self.distances(actual) <= self.limit.element * self.rms)


@dataclass(frozen=True)
class Direction:
    """⟨gradients, u⟩ = value ± slack along one direction u through all arguments at once."""

    title: str
    oracle: str
    u: Sequence[Tensor]  # a part for every gradient
    value: float
    slack: float
    size: float  # what errors are relative to
    origin: str  # of the slack
    wrong: str  # the sentence for a gradient that says otherwise, with {actual}, {value} and {error}
    diagnosis: str = ""  # the kind of mistake that this is


@dataclass(frozen=True)
class SlopeClaim:
    """⟨gradient, u⟩ lies between the slopes of forward along u, ± their uncertainty; that on trial says `actual`.

    u is the element at `index`, or a direction through `count` elements, none of which counts for less than `size`.
    """

    index: tuple[int, ...]
    count: int
    actual: float
    slope: Slope
    size: float = 1.0

    @property
    def off(self) -> float:
        return self.slope.distance(self.actual)

    @property
    def nearest(self) -> float:
        return min(self.slope.left, self.slope.right, key=lambda slope: abs(self.actual - slope))

    @property
    def wrong(self) -> bool:
        return self.off > self.slope.uncertainty

    def of_element(self) -> tuple[float, float]:
        """The error of an element, and the one that would not have escaped."""
        twice, margin = (1, 1) if self.count == 1 else (2, MARGIN)
        return twice * self.off / self.size, margin * self.slope.uncertainty / self.size


@dataclass(frozen=True)
class Measured:
    """What slopes claim of one tensor; errors are relative to its `norm`, that of an element to `rms`."""

    shape: tuple[int, ...]
    claims: Sequence[SlopeClaim]
    count: int  # of the elements that they are about: all, or a sample
    norm: float
    rms: float
    kinks: int  # elements that are not judged
    checked: int  # elements looked at one by one
    origin: str  # of the uncertainty


@dataclass(frozen=True)
class Doubt:
    """How far a claim may be off, where that is known; each element by element."""

    expected: Tensor | None = None  # the oracle's own value in the dtype on trial
    errors: Tensor | None = None  # the oracle's own errors in that dtype, at inputs nearby
    known: int = 1  # how many elements tell of them, in several draws each
    moved: Tensor | None = None  # how far rounding in the inputs moves the truth
    ordinary: float = 0.0  # the root mean square of the example's, where this is of a case
    scatter: Tensor | None = None  # how the error itself scatters where the inputs are rounded anew
    condition: float = 1.0  # the size of the summands over that of the result, as the caller knows it
    summands: float | None = None  # the size that a gradient which is exactly zero is judged by
    floor: float = 0.0  # absolute, of an element: the rounding of a gradient of ordinary size
    longest_sum: int = 1  # how many may have been added up
    leeway: Leeway = Leeway()  # noqa: RUF009  it is frozen


def claimed(
    name: str,
    label: str,
    oracle: str,
    value: Tensor,
    doubt: Doubt,
    dtype: torch.dtype,
    device: torch.device,
    hides: dict[torch.dtype, float] = VISIBLE,
) -> Claims:
    """The claims of one tensor; they are blind where their slack hides errors of the size in `hides`."""
    value = value.detach().cpu()
    if not (dtype.is_floating_point and value.numel()):
        return Claims(name, label, oracle, value, dtype, device, Tolerance(0.0, 0.0, "exactly"), 0.0)
    value = value.double()
    size = value.norm().item() if doubt.summands is None else doubt.summands
    trivial = size == 0
    if trivial:  # only as it happens: rounding may be magnified by 1/√ε before the derivative itself is lost
        doubt = replace(doubt, floor=doubt.floor / sqrt(torch.finfo(dtype).eps))
        size = doubt.floor * sqrt(value.numel())
    limit = _limit(doubt, dtype, value, size)
    blind = TRIVIAL if trivial else ""
    visible = hides.get(dtype, inf)
    if not blind and doubt.condition == 1 and doubt.summands is None and limit.element > visible:
        blind = (
            f"the example is too badly conditioned to judge by: rounding alone may be {limit.element:.1e} of the "
            f"root mean square, and an error of {visible:g} must be seen; choose another example, or declare the "
            f"gradient in `zeros` if it is zero in exact arithmetic"
        )
    return Claims(name, label, oracle, value, dtype, device, doubt.leeway.widen(limit), size, blind, trivial)


def _limit(doubt: Doubt, dtype: torch.dtype, value: Tensor, size: float) -> Tolerance:
    count = sqrt(value.numel())
    if dtype == torch.float64:
        limit = tolerance(dtype, doubt.condition)
    elif doubt.expected is None:
        limit = tolerance_of_sums(dtype, doubt.longest_sum)
    else:
        own = doubt.expected.detach().to("cpu", torch.float64, copy=True).sub_(value).abs_()
        if doubt.errors is not None:
            own = torch.maximum(own, doubt.errors.cpu())
        limit = tolerance_beside(dtype, own, size, doubt.condition, doubt.known)
    if doubt.moved is not None:
        units = magnified(dtype, doubt.known)
        limit = limit.wider(
            ratio(units * doubt.moved.norm().item(), size),
            ratio(units * doubt.moved.max().item(), size / count),
            f"{max(1.0, floor_of(dtype, doubt.known)):.2g} × what one unit of rounding in the inputs does to it",
        )
    if doubt.scatter is not None:
        most = SCATTERING[torch.float32 if doubt.leeway.single else dtype] * max(doubt.ordinary, size / count)
        limit = limit.wider(
            ratio(min(SCATTER * doubt.scatter.norm().item(), most * count), size),
            ratio(min(SCATTER * doubt.scatter.max().item(), most), size / count),
            f"{SCATTER} × how the error scatters where the inputs are rounded anew",
        )
    if doubt.floor:
        limit = limit.wider(
            ratio(doubt.floor * count, size),
            ratio(doubt.floor, size / count),
            "the rounding of a gradient of ordinary size",
        )
    return limit
