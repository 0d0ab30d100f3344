"""Central differences that judge a gradient, element by element where they must.

First random directions through the whole tensor. An element that is off by e moves the slope along one by at least e/2,
so a single wrong one cannot hide; and whatever the others are, one that is off by K tolerances passes four directions
with probability below K⁻⁴. What they do not clear is cut in eight, the worst part first, down to the single elements,
which alone can fail. lines.py says how well a slope is known.
"""

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import pairwise

import torch
from torch import Tensor

from gradient_check.lines import RATIO, Function, Slope, Terms, free_memory

DIRECTIONS = 4  # through the whole tensor; a part of it gets half as many
PARTS = 8
MARGIN = 16  # K: an element is noticed once it is off by this many tolerances
ENOUGH = 16  # wrong elements; no more are looked for
LISTED = 100  # kinks
LEAST_ELEMENTS, MOST_ELEMENTS = 8, 4_000  # looked at one by one
MOST_WORK = 10**8  # elements of the point and of the summands, for that
ROUNDING = 64 * torch.finfo(torch.float64).eps  # of a gradient that is exact otherwise
BLIND = 0.1  # of the root mean square: an element that is known no better is not judged
SAMPLE = 100_000  # elements, where there is no memory for all
COPIES = 12  # in float64, of the point and of the summands, that a search may need at once


@dataclass(frozen=True)
class Slopes:
    """How a gradient stands up to central differences.

    Errors and tolerances are relative: to the norm of the gradient and, for an element, to its root mean square (or to
    the tolerance, where the gradient is smaller than that). Where directions cleared all, `index` is empty, `actual`
    and `expected` are slopes along the worst of them, and the errors are those of the slope along it.
    """

    passed: bool
    kinks: tuple[tuple[int, ...], ...]  # the first LISTED elements at a kink, or too near to one to tell
    kink_count: int
    index: tuple[int, ...]  # of the element with the largest error relative to what is allowed
    actual: float
    expected: float
    error: float  # ‖gradient − differences‖, kinks left out
    element_error: float
    tolerance: float
    element_tolerance: float
    checked: int  # elements looked at one by one
    origin: str
    reason: str  # empty when passed


@dataclass(frozen=True)
class Claim:
    """⟨gradient, u⟩ lies between the slopes of f along u, ± their uncertainty; the gradient on trial says `actual`.

    u is the element `start`, or a direction through the elements from `start` to `stop`, none of which counts for less
    than `size`.
    """

    start: int
    stop: int
    actual: float
    slope: Slope
    size: float = 1.0

    @property
    def single(self) -> bool:
        return self.stop - self.start == 1

    @property
    def off(self) -> float:
        off = self.slope.distance(self.actual)
        return math.inf if math.isnan(off) else off

    @property
    def wrong(self) -> bool:
        return self.off > self.slope.uncertainty

    @property
    def expected(self) -> float:
        return min(self.slope.left, self.slope.right, key=lambda slope: abs(self.actual - slope))

    def of_element(self) -> tuple[float, float]:
        """The error of an element, and the one that would not have escaped."""
        if self.single:
            return self.off, self.slope.uncertainty
        return 2 * self.off / self.size, MARGIN * self.slope.uncertainty / self.size


def judge_slopes(
    terms: Terms,
    point: Tensor,
    gradient: Tensor,
    *,
    accuracy: float | None = None,
    ordinary: float = 0.0,
    generator: torch.Generator,
) -> Slopes:
    """Is `gradient` that of f(v) = terms(v).sum() at `point`?

    `terms` gives the summands of f, is pure, and takes what has the shape and dtype of `point`. The steps fit that
    dtype: float64 judges to some 1e-8 of the root mean square, float32 to a percent. `gradient` has the same shape;
    `accuracy` is the relative one to be expected of it where it was computed in lower precision than `point`.
    `ordinary` is the root mean square of such gradients elsewhere: one that happens to be small is rounded like those.

    Where there is no memory for all elements, a random sample of them is judged, and `origin` says so.

    Raises ValueError if the shapes differ or `point` is not of a floating-point dtype.
    """
    if not point.is_floating_point():
        raise ValueError(f"differences need a floating-point tensor, not {point.dtype}")
    if gradient.shape != point.shape:
        raise ValueError(f"the gradient has shape {tuple(gradient.shape)}, not {tuple(point.shape)}")
    with torch.no_grad():
        search = _searching(terms, point, gradient, accuracy or 0.0, ordinary, generator)
        return _verdict(search.claims(), search)


def cleared(
    terms: Terms, point: Tensor, gradient: Tensor, *, ordinary: float = 0.0, generator: torch.Generator
) -> Slopes | None:
    """As `judge_slopes`, by random directions alone; None where they find something, which need not be wrong."""
    with torch.no_grad():
        search = _searching(terms, point, gradient, 0.0, ordinary, generator)
        claim, agrees = search.through(0, len(search.gradient), DIRECTIONS // 2)
        return _verdict([claim], search) if agrees else None


def one_sided(
    terms: Terms, point: Tensor, indices: Iterable[Sequence[int]], slopes: Sequence[float] | None = None
) -> list[tuple[float, float, float]]:
    """The slopes of f(v) = terms(v).sum() to the left and to the right of `point`, and their uncertainty.

    One triple per index. Both are equal where f is smooth; a side on which the slope grows without bound has ±inf, and
    both do where f is not finite on one side. Where `slopes` are given it is looked no further than explains them.
    """
    with torch.no_grad():
        function = Function(terms, point, torch.Generator().manual_seed(0))
        strides = [math.prod(point.shape[axis + 1 :]) for axis in range(point.dim())]
        strided = [sum(n * stride for n, stride in zip(index, strides, strict=True)) for index in indices]
        wanted = slopes or [math.nan] * len(strided)
        found = [function.along_element(i, slope, 0.0, 0.0) for i, slope in zip(strided, wanted, strict=True)]
    return [(slope.left, slope.right, slope.uncertainty) for slope in found]


class _Search:
    """Directions first, elements where they do not agree.

    The elements may be a sample of those of a larger tensor of this `shape`; their `places` are counted there.
    """

    def __init__(
        self,
        function: Function,
        gradient: Tensor,
        accuracy: float,
        ordinary: float,
        generator: torch.Generator,
        shape: torch.Size,
        places: Tensor | None = None,
    ) -> None:
        self.shape, self.places = shape, places
        self.function = function
        self.gradient = gradient.detach().to(function.values.device, torch.float64).flatten()
        self.generator = generator
        self.norm = self.gradient.nan_to_num(0.0, 0.0, 0.0).norm().item()
        self.rms = max(self.norm / max(len(self.gradient), 1) ** 0.5, ordinary)
        self.accuracy = max(accuracy, ROUNDING)
        self.wanted = max(function.steps[0] / 2, 16 * accuracy) * self.rms

    def claims(self) -> Iterator[Claim]:
        """Of every part that directions clear and of every element of the others, until enough of them are wrong."""
        size, work = len(self.gradient), math.prod(self.shape) + len(self.function.base)
        most = max(LEAST_ELEMENTS, min(MOST_ELEMENTS, MOST_WORK // work)) if size else 0
        parts = [(0, size, 0)]  # the worst first, by order of magnitude; of those the smallest
        wrong = checked = 0
        while parts and wrong < min(ENOUGH, most // LEAST_ELEMENTS) and checked < most:
            _, count, start = heappop(parts)
            stop = start + count
            if count == 1:
                claim = self.at(start)
                checked += 1
                wrong += claim.wrong
                yield claim
                continue
            magnitude = 0
            if count < size or size > PARTS:
                claim, agrees = self.through(start, stop, DIRECTIONS if count == size else DIRECTIONS // 2)
                if agrees:
                    yield claim
                    continue
                magnitude = math.frexp(min(claim.off / count**0.5, sys.float_info.max))[1]
            for a, b in pairwise(sorted({start + count * k // PARTS for k in range(PARTS + 1)})):
                heappush(parts, (-magnitude, b - a, a))

    def at(self, i: int) -> Claim:
        allowance = self.inexact(i, i + 1).item() + self.function.floor
        actual = self.gradient[i].item()
        return Claim(i, i + 1, actual, self.function.along_element(i, actual, self.wanted, allowance))

    def through(self, start: int, stop: int, count: int) -> tuple[Claim, bool]:
        """What directions say of the elements from start to stop, and whether all agree: the least sure, or the first
        that does not."""
        scale = self.function.scale(start, stop)
        size = scale.min().item()
        # random signs: more than six standard deviations of what the inexact elements add up to
        allowance = 6 * (self.inexact(start, stop) * scale).norm().item() + self.function.floor
        gradient, wanted = self.gradient[start:stop], self.wanted * size
        claims: list[Claim] = []
        for _ in range(count):
            w = self.function.direction(start, stop, self.generator)
            slope = self.function.along_direction(start, w, gradient, wanted, allowance)
            claims.append(Claim(start, stop, torch.dot(gradient, w).item(), slope, size))
            if claims[-1].wrong or not slope.smooth:
                return claims[-1], False
        claim = max(claims, key=lambda claim: claim.slope.uncertainty)
        sharp = claim.slope.uncertainty <= 2 * wanted or self.rms * size <= self.function.floor
        return claim, sharp or self._no_element_is_sharper(claim)

    def _no_element_is_sharper(self, claim: Claim) -> bool:
        """Whether rounding leaves single elements known no better, as where each moves most of the summands."""
        if claim.slope.uncertainty > BLIND * self.rms * claim.size:
            return False
        some = torch.randint(claim.start, claim.stop, (PARTS,), generator=self.generator).tolist()
        roundings = []
        for i in some:
            move = self.function.steps[0] * self.function.scale(i, i + 1)
            roundings.append(self.function.rise(i, move)[1] / move.item())
        return self.function.floor + RATIO * min(roundings) > claim.slope.uncertainty / claim.size / 8

    def inexact(self, start: int, stop: int) -> Tensor:
        """How far off elements may be, of a gradient that is right."""
        return self.gradient[start:stop].nan_to_num(0.0, 0.0, 0.0).abs_().clamp_(min=self.rms).mul_(self.accuracy)

    def index(self, i: int) -> tuple[int, ...]:
        place = torch.tensor(i) if self.places is None else self.places[i]
        return tuple(int(n) for n in torch.unravel_index(place, self.shape))


def _searching(
    terms: Terms, point: Tensor, gradient: Tensor, accuracy: float, ordinary: float, generator: torch.Generator
) -> _Search:
    """Through all elements; where they are too many for the memory, a sample and the summands that move with it."""
    size = point.numel()
    if size <= SAMPLE or COPIES * 8 * (size + terms(point).numel()) <= free_memory():
        function = Function(terms, point, generator)
        return _Search(function, gradient, accuracy, ordinary, generator, point.shape)
    places = torch.randint(size, (SAMPLE,), generator=generator).unique().to(point.device)
    moved = point.detach().clone(memory_format=torch.contiguous_format)
    own, given = moved.view(-1)[places], gradient.detach().reshape(-1)[places]

    def all_terms(v: Tensor) -> Tensor:
        moved.view(-1)[places] = v
        return terms(moved).flatten()

    step = torch.finfo(point.dtype).eps ** (1 / 4) * own.abs().clamp(min=1)
    base = all_terms(own).clone()
    moving = ((all_terms(own + step) != base) | (all_terms(own - step) != base)).nonzero().flatten()
    function = Function(lambda v: all_terms(v)[moving], own, generator)
    return _Search(function, given, accuracy, ordinary, generator, point.shape, places)


def _verdict(claims: Iterable[Claim], search: _Search) -> Slopes:
    """A gradient is wrong in the elements whose claim it contradicts; those at a kink are counted, not judged."""
    kinks: list[int] = []
    judged: list[Claim] = []
    checked = cleared = 0
    smallest = search.function.steps[0]
    for claim in claims:
        smallest = min(smallest, claim.slope.step)
        checked, cleared = checked + claim.single, cleared + (claim.stop - claim.start)
        known = max(search.rms, abs(claim.actual)) * BLIND
        blind = claim.slope.uncertainty > known and search.rms > search.function.floor
        if claim.single and not claim.wrong and (blind or not claim.slope.smooth):
            kinks.append(claim.start)
        else:
            judged.append(claim)
    elements = [claim for claim in judged if claim.single]
    worst = max(elements or judged, key=lambda claim: _ratio(*claim.of_element()), default=None)
    error, allowed = worst.of_element() if worst else (0.0, 0.0)
    errors = math.hypot(*(claim.off / claim.size for claim in judged))
    limits = math.hypot(*(claim.slope.uncertainty / claim.size for claim in judged))
    norm, rms = max(search.norm, limits), max(search.rms, allowed)
    return Slopes(
        passed=not any(claim.wrong for claim in elements),
        kinks=tuple(search.index(i) for i in sorted(kinks)[:LISTED]),
        kink_count=len(kinks),
        index=search.index(worst.start) if worst and worst.single else (),
        actual=worst.actual if worst else math.nan,
        expected=worst.expected if worst else math.nan,
        error=_ratio(errors, norm),
        element_error=_ratio(error, rms),
        tolerance=_ratio(limits, norm),
        element_tolerance=_ratio(allowed, rms),
        checked=checked,
        origin=_origin(checked, cleared, search, smallest),
        reason=_reason(worst, search) if worst and worst.single and worst.wrong else "",
    )


def _reason(claim: Claim, search: _Search) -> str:
    slope = claim.slope
    where = f"at {list(search.index(claim.start))}"
    if slope.left == slope.right == 0:
        said = "forward is constant there: it rounds or compares, or takes steps in a lower precision"
        return f"{where} it is {claim.actual:.9g}, but {said}; declare a gradient that is meant with `intended`"
    if slope.smooth:
        return f"{where} it is {claim.actual:.9g}, but the slope is {claim.expected:.9g} ± {slope.uncertainty:.1g}"
    low, high = sorted((slope.left, slope.right))
    return f"{where}, a kink, it is {claim.actual:.9g}, outside of the slopes {low:.9g} and {high:.9g}"


def _origin(checked: int, told: int, search: _Search, smallest: float) -> str:
    size = len(search.gradient)
    if not checked:
        looked = "random directions"
    elif checked == size:
        looked = "every element"
    elif told < size:
        looked = f"{checked} of {size} elements, {size - told} left out"
    else:
        looked = f"{checked} of {size} elements, random directions for the rest"
    if search.places is not None:
        looked += f" of a sample of {size:,} of {math.prod(search.shape):,} elements"
    steps = f"steps {search.function.steps[0]:.1g} to {smallest:.1g}"
    return f"central differences, {looked}, {steps}: their change from step to step and the rounding"


def _ratio(error: float, size: float) -> float:
    """error / size; no error is none, whatever the size."""
    return 0.0 if error == 0 else error / size if size > 0 else math.inf


def central_differences(function: Callable[[], Tensor], tensor: Tensor, step: float = 1e-5) -> Tensor:
    """(f(v + h) − f(v − h)) / 2h for every element v of `tensor`, which `function` reads and which is restored.

    `function` returns a 0-d tensor. In float64 the error is about h² from the third derivative and 1e-16 |f| / h
    from rounding; h = 1e-5 makes both some 1e-10.
    """
    result = torch.empty_like(tensor)
    flat, out = tensor.view(-1), result.view(-1)
    for i in range(flat.numel()):
        value = flat[i].item()
        flat[i] = value + step
        above = function()
        flat[i] = value - step
        below = function()
        flat[i] = value
        out[i] = (above - below) / (2 * step)
    return result
