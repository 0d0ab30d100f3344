"""Central differences of a forward: what they claim of a gradient, element by element where they must.

First random directions through the whole tensor. An element that is off by e moves the slope along one by at least e/2,
so a single wrong one cannot hide; and whatever the others are, one that is off by K tolerances passes four directions
with probability below K⁻⁴. What they do not clear is cut in eight, the worst part first, down to the single elements,
which alone can fail. Elements go by their value: the equal ones, which share a kink, are a part of their own, and the
rest is cleared without them. lines.py says how well a slope is known.
"""

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from heapq import heappop, heappush
from itertools import pairwise

import torch
from torch import Generator, Tensor

from gradient_check.claims import Measured, SlopeClaim
from gradient_check.lines import RATIO, Function, Terms
from gradient_check.memory import free_memory

DIRECTIONS = 4  # through the whole tensor; a part of it gets half as many
PARTS = 8
ENOUGH, TRIES = 16, 4  # wrong elements, fewer where f takes long; times as many parts are cut. Of those not cleared:
ALL, SOME, OF_EQUALS = 8, 2, 0.5  # times as many are looked at, in a tensor no larger; in others; of equal values
MOST_WORK = 10**7  # elements of the point and of the summands, for that
ROUNDING = 64 * torch.finfo(torch.float64).eps  # of a gradient that is exact otherwise
BLIND = 0.1  # of the root mean square: an element that is known no better is not judged
SAMPLE = 100_000  # elements, where there is no memory for all
COPIES = 12  # in float64, of the point and of the summands, that a search may need at once


def measure(
    terms: Terms, point: Tensor, gradient: Tensor, *, generator: Generator,
    accuracy: float = 0.0, ordinary: float = 0.0, enough: int = ENOUGH,
) -> Measured:  # fmt: skip
    """What the slopes of f(v) = terms(v).sum() at `point` say of `gradient`.

    `terms` gives the summands of f, is pure, and takes what has the shape and dtype of `point`. The steps fit that
    dtype: float64 judges to some 1e-8 of the root mean square, float32 to a percent. `gradient` has the same shape;
    `accuracy` is the relative one to be expected of it where it was computed in lower precision than `point`.
    `ordinary` is the root mean square of such gradients elsewhere: one that happens to be small is rounded like those.
    `enough` wrong elements are shown; of others, where directions are of no use, some times as many are looked at.
    Where there are too many elements, a random sample of them is judged, and `origin` says so.

    Raises ValueError if the shapes differ or `point` is not of a floating-point dtype.
    """
    if not point.is_floating_point():
        raise ValueError(f"differences need a floating-point tensor, not {point.dtype}")
    if gradient.shape != point.shape:
        raise ValueError(f"the gradient has shape {tuple(gradient.shape)}, not {tuple(point.shape)}")
    with torch.no_grad():
        search = _Search(terms, point, gradient, accuracy, ordinary, generator)
        return search.measured(list(search.claims(enough)))


def cleared(
    terms: Terms, point: Tensor, gradient: Tensor, *, ordinary: float = 0.0, generator: Generator
) -> Measured | None:
    """As `measure`, by random directions alone; None where they find something, which need not be wrong."""
    with torch.no_grad():
        search = _Search(terms, point, gradient, 0.0, ordinary, generator)
        claim, agrees = search.through(0, len(search.gradient), DIRECTIONS // 2)
        return search.measured([claim]) if agrees else None


def one_sided(
    terms: Terms, point: Tensor, indices: Iterable[Sequence[int]], slopes: Sequence[float] | None = None
) -> list[tuple[float, float, float]]:
    """The slopes of f(v) = terms(v).sum() to the left and to the right of `point`, and their uncertainty.

    One triple per index. Both are equal where f is smooth; a side on which the slope grows without bound has ±inf, and
    both do where f is not finite on one side. Where `slopes` are given it is looked no further than explains them.
    """
    counted = torch.arange(point.numel(), device="cpu").view(point.shape)
    places = [int(counted[tuple(index)]) for index in indices]
    with torch.no_grad():
        function = Function(terms, point, Generator().manual_seed(0))
        wanted = slopes or [math.nan] * len(places)
        found = [function.along_element(i, slope, 0.0, 0.0) for i, slope in zip(places, wanted, strict=True)]
    return [(slope.left, slope.right, slope.uncertainty) for slope in found]


class _Search:
    """Directions first, elements where they do not agree.

    Elements are counted in the order of `places`: by value, equal ones at random. Where they are too many for the
    memory these are a sample, and f has the summands that move with it alone; a large tensor goes in its own order.
    """

    def __init__(
        self, terms: Terms, point: Tensor, gradient: Tensor, accuracy: float, ordinary: float, generator: Generator
    ) -> None:
        self.shape, self.generator = point.shape, generator
        gradient, size = gradient.detach().to(point.device, torch.float64).flatten(), point.numel()
        sampled = size > SAMPLE and COPIES * 8 * (size + terms(point).numel()) > free_memory()
        self.places: Tensor | None = None
        if sampled or size <= SAMPLE:
            flat = point.detach().flatten()
            if sampled:
                places = torch.randint(size, (SAMPLE,), generator=generator, device="cpu").unique()
            else:
                places = torch.arange(size, device="cpu")
            places = places[torch.randperm(len(places), generator=generator, device="cpu")].to(point.device)
            self.places = places[flat[places].sort(stable=True).indices]
            terms, point, gradient = _of_some(terms, point, self.places), flat[self.places], gradient[self.places]
        self.function = Function(_that_move(terms, point) if sampled else terms, point, generator)
        self.gradient = gradient
        self.norm = gradient.nan_to_num(0.0, 0.0, 0.0).norm().item()
        self.rms = max(self.norm / max(len(gradient), 1) ** 0.5, ordinary)
        self.accuracy = max(accuracy, ROUNDING)
        self.wanted = max(self.function.steps[0] / 2, 16 * accuracy) * self.rms
        self.checked = self.kinks = self.spoken_for = 0  # elements looked at, and those that they speak for

    def claims(self, enough: int) -> Iterator[SlopeClaim]:
        """Of every part that directions clear and of elements of the others, until enough of them are wrong."""
        size, work = len(self.gradient), math.prod(self.shape) + len(self.function.base)
        values = self.function.values
        enough = max(2, min(enough, MOST_WORK * enough // ENOUGH // max(work, 1)))
        parts = [(0, size, 0)]  # the worst first, by order of magnitude; of those the smallest
        wrong = tried = 0
        while parts and wrong < enough:
            magnitude, count, start = heappop(parts)
            if count == 1:
                claim = self.at(start)
                self.checked, wrong = self.checked + 1, wrong + claim.wrong
                self.kinks += self.lies_at_kink(claim)
                yield claim
                continue
            cuts, few, some = self.cuts(start, count), count, size > ALL * enough
            if some and tried >= TRIES * (enough + PARTS * (wrong + 1)):
                few = round(OF_EQUALS * enough)
            elif count < size or size > PARTS:
                tried += 1
                claim, agrees = self.through(start, count, DIRECTIONS if count == size else DIRECTIONS // 2)
                if agrees:
                    yield claim
                    continue
                magnitude = -math.frexp(min(claim.off / count**0.5, sys.float_info.max))[1]
                some = some and claim.off < math.inf and not (claim.wrong and claim.slope.smooth)
                alike = self.places is not None and values[start] == values[start + count - 1]
                few = round(OF_EQUALS * enough) if some and alike else count
            few = 0 if some and self.checked - wrong >= SOME * enough else min(few, count)
            cuts = cuts if few == count else list(range(start, start + few + 1))
            self.spoken_for += count - few
            for a, b in pairwise(cuts):
                heappush(parts, (magnitude, b - a, a))

    def cuts(self, start: int, count: int) -> list[int]:
        """Where a part is cut: around many equal values, or else in eight."""
        cuts = {start + count * k // PARTS for k in range(PARTS + 1)}
        if self.places is not None:
            counts = self.function.values[start : start + count].unique_consecutive(return_counts=True)[1]
            ends = start + counts.cumsum(0)
            many = (counts > max(PARTS, count // PARTS**2)) & (counts < count)
            if many.any():
                cuts = {start, start + count, *(ends - counts)[many].tolist(), *ends[many].tolist()}
        return sorted(cuts)

    def lies_at_kink(self, claim: SlopeClaim) -> bool:
        """Or too near to one to tell: such an element is counted, not judged."""
        blind = claim.slope.uncertainty > max(self.rms, abs(claim.actual)) * BLIND and self.rms > self.function.floor
        return claim.count == 1 and not claim.wrong and (blind or not claim.slope.smooth)

    def at(self, i: int) -> SlopeClaim:
        allowance, actual = self.inexact(i, 1).item() + self.function.floor, self.gradient[i].item()
        return SlopeClaim(self.index(i), 1, actual, self.function.along_element(i, actual, self.wanted, allowance))

    def through(self, start: int, count: int, directions: int) -> tuple[SlopeClaim, bool]:
        """What directions say of the elements from `start` on, and whether all agree: the least sure, or the first
        that does not."""
        scale = self.function.scale(start, count)
        size = scale.min().item()
        # random signs: more than six standard deviations of what the inexact elements add up to
        allowance = 6 * (self.inexact(start, count) * scale).norm().item() + self.function.floor
        gradient, wanted = self.gradient[start : start + count], self.wanted * size
        claims: list[SlopeClaim] = []
        for _ in range(directions):
            w = self.function.direction(start, count, self.generator)
            slope = self.function.along_direction(start, w, gradient, wanted, allowance)
            claims.append(SlopeClaim((), count, torch.dot(gradient, w).item(), slope, size))
            if claims[-1].wrong or not slope.smooth:
                return claims[-1], False
        claim = max(claims, key=lambda claim: claim.slope.uncertainty)
        sharp = claim.slope.uncertainty <= 2 * wanted or self.rms * size <= self.function.floor
        return claim, sharp or self._no_element_is_sharper(claim, start)

    def _no_element_is_sharper(self, claim: SlopeClaim, start: int) -> bool:
        """Whether rounding leaves single elements known no better, as where each moves most of the summands."""
        if claim.slope.uncertainty > BLIND * self.rms * claim.size:
            return False
        some = start + torch.randint(claim.count, (PARTS,), generator=self.generator, device="cpu")
        moves = [(i, self.function.steps[0] * self.function.scale(i, 1)) for i in some.tolist()]
        rounding = min(self.function.rise(i, move)[1] / move.item() for i, move in moves)
        return self.function.floor + RATIO * rounding > claim.slope.uncertainty / claim.size / 8

    def inexact(self, start: int, count: int) -> Tensor:
        """How far off elements may be, of a gradient that is right."""
        size = self.gradient[start : start + count].nan_to_num(0.0, 0.0, 0.0)
        return size.abs_().clamp_(min=self.rms).mul_(self.accuracy)

    def measured(self, claims: Sequence[SlopeClaim]) -> Measured:
        """What is known; elements at a kink are counted, not judged."""
        kinks = self.kinks + round(self.spoken_for * self.kinks / max(self.checked, 1))
        judged = [claim for claim in claims if not self.lies_at_kink(claim)]
        shape, size = tuple(self.shape), len(self.gradient)
        return Measured(shape, judged, size, self.norm, self.rms, kinks, self.checked, self.origin(claims))

    def origin(self, claims: Sequence[SlopeClaim]) -> str:
        """What was looked at, and where the uncertainty comes from."""
        checked, size = self.checked, len(self.gradient)
        left = size - self.spoken_for - sum(claim.count for claim in claims)
        looked = f"{checked} of {size} elements" if checked else "random directions"
        if self.spoken_for:
            looked += f", which speak for {self.spoken_for} more"
        if checked == size:
            looked = "every element"
        elif left:
            looked += f", {left} left out"
        elif checked and checked + self.spoken_for < size:
            looked += ", random directions for the rest"
        if size < math.prod(self.shape):
            looked += f" of a sample of {size:,} of {math.prod(self.shape):,} elements"
        first = self.function.steps[0]
        steps = f"steps {first:.1g} to {min([first, *(claim.slope.step for claim in claims)]):.1g}"
        return f"central differences, {looked}, {steps}: their change from step to step and the rounding"

    def index(self, i: int) -> tuple[int, ...]:
        place = torch.tensor(i, device="cpu") if self.places is None else self.places[i]
        return tuple(int(n) for n in torch.unravel_index(place, self.shape))


def _of_some(terms: Terms, point: Tensor, places: Tensor) -> Terms:
    """As a function of the elements at these places."""
    moved = point.detach().clone(memory_format=torch.contiguous_format)

    def of_some(v: Tensor) -> Tensor:
        moved.view(-1)[places] = v
        return terms(moved).flatten()

    return of_some


def _that_move(terms: Terms, point: Tensor) -> Terms:
    """Without the summands that do not."""
    step = torch.finfo(point.dtype).eps ** (1 / 4) * point.abs().clamp(min=1)
    base = terms(point).clone()
    moving = ((terms(point + step) != base) | (terms(point - step) != base)).nonzero().flatten()
    return lambda v: terms(v)[moving]


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
        out[i] = (above - function()) / (2 * step)
        flat[i] = value
    return result
