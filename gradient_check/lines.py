"""A function along lines through one point: its slopes, its kinks and its rounding.

f(v + h w) is looked at with steps h that fall by eight. With R and L the slopes of the secants to the right and to the
left, the central slope is C = (R + L)/2 and the bend is B = R − L. Where f is smooth, C changes with h² and B with h;
at a kink B stays what it is. So the uncertainty of C is what the step before it says,

    |C(h) − C(8h)| + |8 B(h) − B(8h)| + rounding / h,

and the step is taken smaller until that is small beside the gradient, or no larger than rounding explains. Where it
never is, the point lies at a kink, a jump or the border of where f is defined, or too near to tell: any slope between
those of the two sides is right there, for each summand of f. Rounding is measured: fourth differences of the summands
of f at points so close together that f itself is a straight line between them, added up over the summands that a step
changes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from time import perf_counter

import torch
from torch import Tensor

RATIO = 8  # of one step to the next
FEW = 8  # summands
PLACES = 256  # between equal values
SOME_PLACES = (4, 8, 32)  # that may be enough
GOLDEN = (math.sqrt(5) - 1) / 2  # its multiples are spread, however few are taken
MOST_CALLS, MOST_MOVED = 1_000, 400_000  # to look between equal values: so often, or until so many have been moved

Terms = Callable[[Tensor], Tensor]
Side = Callable[[float], tuple[float, float]]  # at a step: the slope of a secant, and the rounding of its rise


@dataclass(frozen=True)
class Slope:
    """What is known of the slope along a line; `left` and `right` differ only at a kink and may be infinite."""

    left: float
    right: float
    uncertainty: float
    smooth: bool
    step: float  # the smallest that was taken

    def distance(self, slope: float) -> float:
        """How far a slope lies outside of [left, right]; infinite for NaN."""
        low, high = min(self.left, self.right), max(self.left, self.right)
        return math.inf if math.isnan(slope) else max(0.0, low - slope, slope - high)


class Function:
    """f(v) = terms(v).sum() around `point`, which is not written to. Elements are counted as in the flat tensor."""

    def __init__(self, terms: Terms, point: Tensor, generator: torch.Generator) -> None:
        self.terms = terms
        self.moved = point.detach().clone(memory_format=torch.contiguous_format)
        self.values = point.detach().flatten()
        self.base = terms(self.moved).double().flatten().clone()
        self.epsilon = self._resolution(generator)
        first, last = math.log2(16 * self.epsilon ** (1 / 3)), math.log2(self.epsilon ** (2 / 3))
        self.steps = [2.0**k for k in range(round(first), math.floor(last), -round(math.log2(RATIO)))]
        self.calls = 0  # of `terms`, between equal values
        self.ties_bend = False
        self.noise = self._noise(generator)
        self.floor = self.noise.sum().item() / self.steps[0]  # slopes below this are lost in the rounding of f

    def scale(self, start: int, count: int) -> Tensor:
        """max(1, |v|), of which a step is a part."""
        return self.values[start : start + count].double().abs().clamp(min=1)

    def direction(self, start: int, count: int, generator: torch.Generator) -> Tensor:
        """Random, of size 0.5 to 1.5 times max(1, |v|), through so many elements from `start` on."""
        w = torch.rand(count, generator=generator, dtype=torch.float64, device="cpu").mul_(2).sub_(1)
        return w.add_(w.sign(), alpha=0.5).to(self.values.device).mul_(self.scale(start, count))

    def rises(self, values: Tensor, start: int = 0) -> Tensor:
        """Of each summand, where the elements from `start` on have other values."""
        there = self.moved.view(-1)[start : start + len(values)]
        try:
            there.copy_(values)
            return self.terms(self.moved).double().flatten() - self.base
        finally:
            there.copy_(self.values[start : start + len(values)])

    def rise(self, start: int, move: Tensor) -> tuple[float, float, Tensor]:
        """f − f(point) where the elements from `start` on have moved, its rounding, and the move as it was rounded.

        Summands that stay the same cancel exactly.
        """
        own = self.values[start : start + len(move)]
        there = (own + move).to(own.dtype)
        rises = self.rises(there, start)
        rounding = self.noise.masked_fill(rises == 0, 0.0).sum().item()
        return rises.sum().item(), rounding, there.double() - own

    def along_direction(self, start: int, w: Tensor, gradient: Tensor, wanted: float, allowance: float) -> Slope:
        """The slope along w, through the elements from `start` on, whose claimed gradient is `gradient`."""

        def side(h: float) -> tuple[float, float]:
            rise, rounding, run = self.rise(start, h * w)
            return (rise - torch.dot(gradient, run).item()) / h, rounding  # ought to be zero

        claimed = torch.dot(gradient, w).item()
        found = _follow(side, self.steps, 0.0, wanted, allowance, confirm=False)
        return replace(found, left=claimed + found.left, right=claimed + found.right)

    def element(self, i: int, slope: float, wanted: float, allowance: float, *, confirm: bool) -> Slope:
        scale = self.scale(i, 1)
        size = scale.item()

        def side(h: float) -> tuple[float, float]:
            rise, rounding, run = self.rise(i, h * scale)
            return rise / run.item(), rounding / size

        return _follow(side, self.steps, slope, wanted, allowance, confirm=confirm)

    def along_element(self, i: int, slope: float, wanted: float, allowance: float) -> Slope:
        """The slope of f in one element, which is thought to be `slope`, or the slopes that its kink allows."""
        found = self.element(i, slope, wanted, allowance, confirm=True)
        if not found.smooth and math.isfinite(found.left) and math.isfinite(found.right):
            found = self._each_summands_own(found, i)
        return found if found.distance(slope) <= found.uncertainty else self._where_ties_part(found, i, slope)

    def _each_summands_own(self, kink: Slope, i: int) -> Slope:
        """At a kink each summand may take a slope of its own; with overlapping windows some bend up, others down."""
        own = self.values[i : i + 1]
        h = self.steps[len(self.steps) // 2] * self.scale(i, 1).item()
        bends = self.rises(own + h, i) + self.rises(own - h, i)
        bends = bends.where(bends.abs() > 4 * self.noise, 0.0).nan_to_num(0.0, 0.0, 0.0) / h
        both = min(bends.clamp(min=0).sum().item(), -bends.clamp(max=0).sum().item())
        left, right = sorted((kink.left, kink.right))
        return replace(kink, left=left - both, right=right + both) if both else kink

    def _where_ties_part(self, found: Slope, i: int, slope: float) -> Slope:
        """Among equal values, also the slopes nearby, where they are not: as the middle of three has one, but no two.

        The others are moved apart, in random order, and the element to places between them, all that at two distances,
        until they explain `slope`. Slopes that stay as different when the distance shrinks belong to a kink.
        """
        size = self.scale(i, 1).item()
        equal = (self.values - self.values[i]).abs() <= self.steps[-1] * size
        if (count := int(equal.sum())) < 3:
            return found
        # too many to tell: what holds of those before holds of the rest
        if self.calls > max(MOST_CALLS, MOST_MOVED // len(self.values)):
            return replace(found, left=-math.inf, right=math.inf, smooth=False) if self.ties_bend else found
        generator, value = torch.Generator().manual_seed(i), self.values[i].item()
        w = self.direction(0, len(self.values), generator).abs()
        w[equal] = torch.randperm(count, generator=generator, device="cpu").to(w) * size / count
        places = range(0, count, -(-count // PLACES))
        low = self.base.new_full((2, len(self.base)), math.inf)
        high = -low
        for n, place in enumerate(places, 1):
            for k, radius in enumerate(self.steps[:2]):
                h = radius * size / (4 * count)
                v = self.values + radius * w
                v[i] = value + h * (4 * place + 3)
                ahead = self.rises(v)
                v[i] = value + h * (4 * place + 1)
                slopes = (ahead - self.rises(v)) / (2 * h)
                low[k], high[k] = low[k].minimum(slopes), high[k].maximum(slopes)
            self.calls += 4
            last, bends = n == len(places), (high[1] - low[1]).norm() > (high[0] - low[0]).norm() / 2
            if bends and (last or n in SOME_PLACES):
                ends = [found.left, found.right, low[1].sum().item(), high[1].sum().item()]
                uncertainty = found.uncertainty + self.noise.sum().item() / h
                parted = Slope(min(ends), max(ends), uncertainty, False, found.step)
                if last or parted.distance(slope) <= found.uncertainty:
                    self.ties_bend = True
                    return parted
        return found

    def _resolution(self, generator: torch.Generator) -> float:
        """ε of the dtype in which f is computed: the point's, unless most summands that ought to move stay put."""
        w = self.direction(0, len(self.values), generator)
        size = self.base.abs()

        def rises(epsilon: float) -> list[Tensor]:
            """Of each summand, ahead and back by the smallest step that fits a dtype."""
            return [self.rises(self.values + side * epsilon ** (2 / 3) * w) for side in (1, -1)]

        found = torch.finfo(self.moved.dtype).eps
        moved = torch.stack([rise != 0 for rise in rises(found)]).any(dim=0)
        for dtype in (torch.float32, torch.float16):
            coarser = torch.finfo(dtype).eps
            if coarser <= found or 2 * int(moved.sum()) >= len(moved):
                continue
            far = rises(coarser)
            due = [(rise * (found / coarser) ** (2 / 3)).abs() > 64 * found * size for rise in far]
            ahead_and_back = far[0].sign() * far[1].sign() < 0  # not flat, as at the top of a hill
            if int((due[0] & due[1] & ahead_and_back & ~moved).sum()) > int(moved.sum()):
                found, moved = coarser, (far[0] != 0) | (far[1] != 0)
        return found

    def _noise(self, generator: torch.Generator) -> Tensor:
        """The rounding error of each summand: 4 ε of its size and what fourth differences beside the point show.

        They look at points as far apart as the smallest step: what is finer than that is noise. Of few summands once is
        not enough, because four numbers may cancel.
        """
        noise = self.base.abs().mul_(4 * self.epsilon)
        for step in [self.steps[-1], 2.3 * self.steps[-1]][: 1 if len(noise) > FEW else 2]:
            w = self.direction(0, len(self.values), generator)
            fourth = torch.zeros_like(noise)
            for k, factor in enumerate((1, -4, 6, -4, 1), 1):
                fourth.add_(self.rises(torch.add(self.values, w, alpha=k * step)), alpha=factor)
            noise.add_(fourth.abs_(), alpha=1 if len(noise) > FEW else 1 / 2)
        return noise.nan_to_num_(0.0, 0.0, 0.0)


def measured(terms: Terms, point: Tensor, *, most_calls: int, until: float = math.inf) -> tuple[Tensor, Tensor]:
    """The gradient of f(v) = terms(v).sum() element by element, and its uncertainty, infinite at a kink.

    Good to some 1e-9 of the root mean square in float64, where f is smooth. With about `most_calls` of `terms`, whole
    rows along the first axis are measured, spread evenly from the first to the last, unless perf_counter() passes
    `until` before; the uncertainty of the rest is infinite.
    """
    gradient = torch.zeros(point.numel(), dtype=torch.float64, device="cpu")
    uncertainty = torch.full_like(gradient, math.inf)
    rows, most = len(point) if point.dim() else 1, max(1, most_calls // 4)
    width = point.numel() // max(rows, 1)
    count = min(rows, max(1, most // max(width, 1)))
    chosen = torch.linspace(0, rows - 1, count, dtype=torch.float32, device="cpu").round().long().tolist()
    chosen = [*chosen[:1], *chosen[:0:-1][:1], *sorted(chosen[1:-1], key=lambda row: row * GOLDEN % 1)]
    with torch.no_grad():
        function = Function(terms, point, torch.Generator().manual_seed(0))
        for i in (row * width + k for row in chosen for k in range(min(width, most))):
            if perf_counter() > until:
                break
            slope = function.element(i, math.nan, 0.0, 0.0, confirm=False)
            if slope.smooth:
                gradient[i], uncertainty[i] = slope.left, slope.uncertainty
    return gradient.view(point.shape), uncertainty.view(point.shape)


def _follow(
    side: Side, steps: Sequence[float], slope: float, wanted: float, allowance: float, *, confirm: bool
) -> Slope:
    """Take smaller steps until the slope is known to `wanted`, or no better for rounding, or the steps end.

    A line that contradicts `slope` is followed as far as rounding allows if it is to `confirm` that: there may be
    stairs, finer than the steps before.
    """
    lefts: list[float] = []
    rights: list[float] = []
    noises: list[float] = []
    settled: list[Slope] = []
    changes: list[float] = []
    rough = False
    for h in steps:
        (right, above), (left, below) = side(h), side(-h)
        lefts.append(left)
        rights.append(right)
        noises.append((above + below) / (2 * h))
        if len(lefts) == 1:
            continue
        center, before = (left + right) / 2, (lefts[-2] + rights[-2]) / 2
        change = abs(center - before) + abs(RATIO * (right - left) - (rights[-2] - lefts[-2]))
        quiet = change <= 2 * RATIO * noises[-1]
        if math.isfinite(change):
            rough = rough or (bool(changes) and change > 3 * changes[-1] and not quiet)
            changes.append(change)
        uncertainty = change + noises[-1]
        enough = wanted or steps[0] / 2 * max([abs(center), *changes[:1]])
        if not (uncertainty <= enough or quiet) or (rough and left == right == 0):
            settled = []
            continue
        found = Slope(center, center, uncertainty + allowance, True, h)
        settled.append(found)
        if found.distance(slope) <= found.uncertainty or not confirm:
            return found
        if len(settled) > 1 and RATIO * noises[-1] > found.distance(slope) / 2:
            break  # the next step would be lost in the rounding
    if settled:
        return min(settled, key=lambda found: found.uncertainty)
    if all(abs(s[-1]) > 0.75 * RATIO * abs(s[-2]) > 0 for s in (lefts, rights)) and (lefts[-1] > 0) == (rights[-1] > 0):
        least = min(lefts[-1], rights[-1], key=abs)  # a step, finer than all that were taken, or a jump: 0 beside it
        if math.isfinite(least):
            return Slope(0.0, math.copysign(math.inf, least), allowance, False, h)
    if rough and changes:  # stairs, a jump, or the neighbourhood of a pole
        known = [value for value in lefts + rights if math.isfinite(value)]
        ends = sorted((min(known), max(known)), reverse=lefts[-1] > rights[-1])
        return Slope(ends[0], ends[1], min(changes) + allowance, False, h)
    (left, a), (right, b) = _limit(lefts, noises, rights[-1]), _limit(rights, noises, lefts[-1])
    if math.isnan(left) or math.isnan(right):
        left, right = -math.inf, math.inf
    return Slope(left, right, a + b + allowance, False, h)


def _limit(slopes: list[float], noises: list[float], other: float) -> tuple[float, float]:
    """Where the slopes of ever shorter secants on one side lead, and how uncertain that is; ±inf if they run away.

    Beside a kink that is nearer than the smallest step they grow too, but only towards those on the `other` side.
    """
    known = [(s, n) for s, n in zip(slopes, noises, strict=True) if math.isfinite(s)]
    if len(known) < 3 or not math.isfinite(slopes[-1]):
        return math.nan, 0.0
    changes = [later[0] - earlier[0] for earlier, later in pairwise(known)]
    growing = abs(changes[-1]) > 0.75 * abs(changes[-2]) > 4 * known[-1][1] and changes[-1] * changes[-2] > 0
    if growing and not abs(slopes[-1] - known[0][0]) < abs(other - known[0][0]):
        return math.copysign(math.inf, changes[-1]), 0.0
    uncertainty, best = min(
        (abs(change) + 2 * n, k) for k, (change, (_, n)) in enumerate(zip(changes, known[1:], strict=True))
    )
    return known[best + 1][0], uncertainty
