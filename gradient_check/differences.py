"""Central differences that judge a gradient, element by element where they must, and notice kinks.

**Along a line.** f(v + h w) is looked at with steps h that fall by eight. With R and L the slopes of the secants to
the right and to the left, the central slope is C = (R + L)/2 and the bend is B = R − L. Where f is smooth, C changes
with h² and B with h; at a kink B stays what it is. So the uncertainty of C is what the step before it says,

    |C(h) − C(8h)| + |8 B(h) − B(8h)| + rounding / h,

and the step is taken smaller until that is small beside the gradient, or no larger than rounding explains. Where it
never is, the point lies at a kink, a jump or the border of where f is defined, or too near to tell: any slope between
those of the two sides is right there, for each summand of f. Rounding is measured: fourth differences of the summands
of f at points so close together that f itself is a straight line between them, added up over the summands that a step
changes.

**Which lines.** First random directions through the whole tensor. An element that is off by e moves the slope along one
by at least e/2, so a single wrong one cannot hide; and whatever the others are, one that is off by K tolerances passes
four directions with probability below K⁻⁴. What they do not clear is cut in eight, the worst part first, down to the
single elements, which alone can fail.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import pairwise

import torch
from torch import Tensor

DIRECTIONS = 4  # through the whole tensor; a part of it gets half as many
PARTS = 8
RATIO = 8  # of one step to the next
MARGIN = 16  # K: an element is noticed once it is off by this many tolerances
ENOUGH = 64  # wrong elements; no more are looked for
LISTED = 100  # kinks
PLACES = 512  # between equal values
MOST_CALLS = 20_000  # to look between equal values
MOST_ELEMENTS = 4_000
ROUNDING = 64 * torch.finfo(torch.float64).eps  # of a gradient that is exact otherwise

Terms = Callable[[Tensor], Tensor]


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
class _Slope:
    """What is known of the slope along a line; `left` and `right` differ only at a kink and may be infinite."""

    left: float
    right: float
    uncertainty: float
    smooth: bool

    @property
    def kinked(self) -> bool:
        return not self.smooth and math.isfinite(self.left) and math.isfinite(self.right)

    def distance(self, slope: float) -> float:
        """How far a slope lies outside of [left, right]; NaN for NaN."""
        low, high = min(self.left, self.right), max(self.left, self.right)
        if low <= slope <= high:
            return 0.0
        return low - slope if slope < low else slope - high


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

    Raises ValueError if the shapes differ or `point` is not of a floating-point dtype.
    """
    if not point.is_floating_point():
        raise ValueError(f"differences need a floating-point tensor, not {point.dtype}")
    if gradient.shape != point.shape:
        raise ValueError(f"the gradient has shape {tuple(gradient.shape)}, not {tuple(point.shape)}")
    with torch.no_grad():
        return _Judge(_Function(terms, point, generator), gradient, accuracy or 0.0, ordinary, generator).judge()


def cleared(
    terms: Terms, point: Tensor, gradient: Tensor, *, ordinary: float = 0.0, generator: torch.Generator
) -> Slopes | None:
    """As `judge_slopes`, by random directions alone; None where they find something, which need not be wrong."""
    with torch.no_grad():
        return _Judge(_Function(terms, point, generator), gradient, 0.0, ordinary, generator).by_directions()


def one_sided(
    terms: Terms, point: Tensor, indices: Iterable[Sequence[int]], slopes: Sequence[float] | None = None
) -> list[tuple[float, float, float]]:
    """The slopes of f(v) = terms(v).sum() to the left and to the right of `point`, and their uncertainty.

    One triple per index. Both are equal where f is smooth; a side on which the slope grows without bound has ±inf, and
    both do where f is not finite on one side. Where `slopes` are given it is looked no further than explains them.
    """
    with torch.no_grad():
        function = _Function(terms, point, torch.Generator().manual_seed(0))
        strides = [math.prod(point.shape[axis + 1 :]) for axis in range(point.dim())]
        found = []
        for k, index in enumerate(indices):
            i = sum(n * stride for n, stride in zip(index, strides, strict=True))
            found.append(function.along_element(i, slopes[k] if slopes else math.nan, 0.0, 0.0))
    return [(slope.left, slope.right, slope.uncertainty) for slope in found]


class _Function:
    """f around one point: its slopes along lines, with the rounding of its summands."""

    def __init__(self, terms: Terms, point: Tensor, generator: torch.Generator) -> None:
        self.terms = terms
        self.point = point.detach().clone(memory_format=torch.contiguous_format)
        self.values = self.point.view(-1).double()
        self.scale = self.values.abs().clamp(min=1)
        self.moved = self.point.clone()
        self.base = terms(self.point).double().flatten().clone()
        self.epsilon = self._resolution(generator)
        first, last = math.log2(16 * self.epsilon ** (1 / 3)), math.log2(self.epsilon ** (2 / 3))
        self.steps = [2.0**k for k in range(round(first), math.floor(last), -round(math.log2(RATIO)))]
        self.smallest = self.steps[0]  # of those taken
        self.calls = 0  # of `terms`, between equal values
        self.ties_bend = False
        self.noise = self._noise(generator)
        self.floor = self.noise.sum().item() / self.steps[0]  # slopes below this are lost in the rounding of f

    def direction(self, start: int, stop: int, generator: torch.Generator) -> Tensor:
        """Random, of size 0.5 to 1.5 times max(1, |v|) in [start, stop), zero elsewhere; flat."""
        size = torch.rand(stop - start, generator=generator, dtype=torch.float64) + 0.5
        sign = 2.0 * torch.randint(0, 2, (stop - start,), generator=generator) - 1
        w = torch.zeros_like(self.values)
        w[start:stop] = (size * sign).to(w.device) * self.scale[start:stop]
        return w

    def along_direction(self, w: Tensor, gradient: Tensor, wanted: float, allowance: float) -> _Slope:
        """The slope along w of f(v) − ⟨gradient, v⟩, which ought to be zero."""

        def side(h: float) -> tuple[float, float]:
            moved = (self.values + h * w).to(self.point.dtype)
            rise, rounding = self._rise(moved.view(self.point.shape))
            expected = torch.dot(gradient, moved.double() - self.values).item()
            return (rise - expected) / h, rounding

        return self._follow(side, 0.0, wanted, allowance, confirm=False)

    def along_element(self, i: int, slope: float, wanted: float, allowance: float) -> _Slope:
        """The slope of f in one element, which is thought to be `slope`."""
        flat = self.moved.view(-1)
        value, scale = self.values[i].item(), self.scale[i].item()

        def side(h: float) -> tuple[float, float]:
            flat[i] = value + h * scale
            run = flat[i].item() - value
            rise, rounding = self._rise(self.moved)
            return rise / run, rounding / scale

        try:
            found = self._follow(side, slope, wanted, allowance, confirm=True)
            found = self._each_summands_own(found, i) if found.kinked else found
            return found if found.distance(slope) <= found.uncertainty else self._where_ties_part(found, i)
        finally:
            flat[i] = value

    def _each_summands_own(self, kink: _Slope, i: int) -> _Slope:
        """At a kink each summand may take a slope of its own; with overlapping windows some bend up, others down."""
        flat, value = self.moved.view(-1), self.values[i].item()
        h = self.steps[len(self.steps) // 2] * self.scale[i].item()
        bends = -2 * self.base
        for side in (h, -h):
            flat[i] = value + side
            bends = bends + self.terms(self.moved).double().flatten()
        bends = torch.where(bends.abs() > 4 * self.noise, bends, 0.0).nan_to_num(0.0, 0.0, 0.0) / h
        both = min(bends.clamp(min=0).sum().item(), -bends.clamp(max=0).sum().item())
        if both == 0:
            return kink
        return replace(kink, left=min(kink.left, kink.right) - both, right=max(kink.left, kink.right) + both)

    def _where_ties_part(self, found: _Slope, i: int) -> _Slope:
        """Among equal values, also the slopes nearby, where they are not: as the middle of three has one, but no two.

        The others are moved apart, in random order, and the element to every place between them; all that at two
        distances. Slopes that stay as different when the distance shrinks belong to a kink.
        """
        equal = (self.values - self.values[i]).abs() <= self.steps[2] * self.scale[i]
        if int(equal.sum()) < 3:
            return found
        if self.ties_bend and self.calls > MOST_CALLS:  # too many to tell
            return _Slope(-math.inf, math.inf, found.uncertainty, False)
        (low, high, _), (near_low, near_high, rounding) = (
            self._slopes_between(i, equal, radius) for radius in self.steps[:2]
        )
        if not (near_high - near_low).norm() > (high - low).norm() / 2:
            return found
        self.ties_bend = True
        left, right = min(found.left, found.right), max(found.left, found.right)
        left, right = min(left, near_low.sum().item()), max(right, near_high.sum().item())
        return _Slope(left, right, found.uncertainty + rounding, False)

    def _slopes_between(self, i: int, equal: Tensor, radius: float) -> tuple[Tensor, Tensor, float]:
        """The lowest and the highest slope of the summands in element i, at places between its equals; the rounding."""
        generator = torch.Generator().manual_seed(i)
        count, scale = int(equal.sum()), self.scale[i].item()
        h = radius * scale / (4 * count)
        v = self.values + radius * self.scale * torch.rand(self.values.shape, generator=generator).to(self.values)
        v[equal] = self.values[i] + radius * scale / count * torch.randperm(count, generator=generator).to(self.values)
        slopes = []
        for place in range(0, count, -(-count // PLACES)):
            ends = []
            for side in (h, -h):
                v[i] = self.values[i] + radius * scale * (place + 0.5) / count + side
                ends.append(self.terms(v.to(self.point.dtype).view(self.point.shape)).double().flatten())
            slopes.append((ends[0] - ends[1]) / (2 * h))
        self.calls += 2 * len(slopes)
        rows = torch.stack(slopes)
        return rows.amin(dim=0), rows.amax(dim=0), self.noise.sum().item() / h

    def _rise(self, moved: Tensor) -> tuple[float, float]:
        """f there minus f at the point, and the rounding in it. Summands that stay the same cancel exactly."""
        summands = self.terms(moved).double().flatten()
        changed = summands != self.base
        rise = torch.where(changed, summands - self.base, 0.0).sum()
        return rise.item(), torch.dot(self.noise, changed.double()).item()

    def _resolution(self, generator: torch.Generator) -> float:
        """ε of the dtype in which f is computed: the point's, unless most summands that ought to move stay put."""
        w = self.direction(0, self.values.numel(), generator)

        def rises(epsilon: float) -> Tensor:
            """Of each summand, ahead and back by the smallest step that fits a dtype."""
            ends = [(self.values + side * epsilon ** (2 / 3) * w).to(self.point.dtype) for side in (1, -1)]
            return torch.stack([self.terms(end.view(self.point.shape)).double().flatten() for end in ends]) - self.base

        found = torch.finfo(self.point.dtype).eps
        near = rises(found)
        for dtype in (torch.float32, torch.float16):
            coarser = torch.finfo(dtype).eps
            if coarser > found:
                far = rises(coarser)
                due = (far * (found / coarser) ** (2 / 3)).abs() > 64 * found * self.base.abs()
                moved = (near != 0).any(dim=0)
                if int((due.all(dim=0) & ~moved).sum()) > int(moved.sum()):
                    found, near = coarser, far
        return found

    def _noise(self, generator: torch.Generator) -> Tensor:
        """The rounding error of each summand: 4 ε of its size and what fourth differences beside the point show.

        They look at points as far apart as the smallest step: what is finer than that is noise.
        """
        noise = 4 * self.epsilon * self.base.abs()
        for step in (self.steps[-1], 2.3 * self.steps[-1]):
            w = self.direction(0, self.values.numel(), generator)
            rows = [(self.values + k * step * w).to(self.point.dtype).view(self.point.shape) for k in range(1, 8)]
            fourth = torch.stack([self.terms(row).double().flatten() for row in rows]).diff(n=4, dim=0)
            noise = noise + fourth.abs().amax(dim=0) / 4
        return noise.nan_to_num(0.0, 0.0, 0.0)

    def _follow(
        self,
        side: Callable[[float], tuple[float, float]],
        slope: float,
        wanted: float,
        allowance: float,
        *,
        confirm: bool,
    ) -> _Slope:
        """Take smaller steps until the slope is known to `wanted`, or no better for rounding, or the steps end.

        A line that contradicts `slope` is followed as far as rounding allows if it is to `confirm` that: there may be
        stairs, finer than the steps before.
        """
        lefts: list[float] = []
        rights: list[float] = []
        noises: list[float] = []
        settled: list[_Slope] = []
        changes: list[float] = []
        rough = False
        for h in self.steps:
            self.smallest = min(self.smallest, h)
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
            enough = wanted or self.steps[0] / 2 * max([abs(center), *changes[:1]])
            if not (uncertainty <= enough or quiet) or (rough and left == right == 0):
                settled = []
                continue
            found = _Slope(center, center, uncertainty + allowance, True)
            settled.append(found)
            if found.distance(slope) <= found.uncertainty or not confirm:
                return found
            if len(settled) > 1 and RATIO * noises[-1] > found.distance(slope) / 2:
                break  # the next step would be lost in the rounding
        if settled:
            return min(settled, key=lambda found: found.uncertainty)
        if rough and changes:  # stairs, or a jump
            known = [value for value in lefts + rights if math.isfinite(value)]
            ends = sorted((min(known), max(known)), reverse=lefts[-1] > rights[-1])
            return _Slope(ends[0], ends[1], min(changes) + allowance, False)
        (left, a), (right, b) = _limit(lefts, noises, rights[-1]), _limit(rights, noises, lefts[-1])
        if math.isnan(left) or math.isnan(right):
            left, right = -math.inf, math.inf
        return _Slope(left, right, a + b + allowance, False)


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


class _Judge:
    """Directions first, elements where they do not agree."""

    def __init__(
        self, function: _Function, gradient: Tensor, accuracy: float, ordinary: float, generator: torch.Generator
    ) -> None:
        self.function = function
        self.shape = gradient.shape
        self.gradient = gradient.detach().to(function.values.device, torch.float64).flatten()
        self.generator = generator
        finite = self.gradient.nan_to_num(0.0, 0.0, 0.0)
        self.norm = finite.norm().item()
        self.rms = max(self.norm / max(finite.numel(), 1) ** 0.5, ordinary)
        self.inexact = max(accuracy, ROUNDING) * finite.abs().clamp(min=self.rms)
        self.wanted = max(function.steps[0] / 2, 16 * accuracy) * self.rms
        self.errors: list[tuple[float, float]] = []  # (error, allowed) of every part that was cleared, every element
        self.worst_line: _Verdict | None = None
        self.worst_element: _Verdict | None = None
        self.kinks: list[int] = []
        self.checked = self.wrong = 0

    def judge(self) -> Slopes:
        size = self.gradient.numel()
        limit = max(100, min(MOST_ELEMENTS, 10**8 // max(size, 1)))
        parts: list[tuple[float, int, int]] = []  # not cleared; the worst first
        if size > PARTS:
            self._clear(0, size, DIRECTIONS, parts)
        elif size:
            parts.append((0.0, 0, size))
        while parts and self.wrong < ENOUGH and self.checked < limit:
            _, start, stop = heappop(parts)
            cuts = [start + (stop - start) * k // PARTS for k in range(PARTS + 1)]
            for a, b in pairwise(cuts):
                if b - a == 1:
                    self._look(a)
                elif b > a:
                    self._clear(a, b, DIRECTIONS // 2, parts)
        return self._slopes(left_out=sum(stop - start for _, start, stop in parts))

    def by_directions(self) -> Slopes | None:
        parts: list[tuple[float, int, int]] = []
        self._clear(0, self.gradient.numel(), DIRECTIONS, parts)
        return None if parts else self._slopes(left_out=0)

    def _clear(self, start: int, stop: int, count: int, parts: list[tuple[float, int, int]]) -> None:
        """Look along directions through the elements from start to stop; add them to `parts` unless all agree."""
        scale = self.function.scale[start:stop]
        smallest = scale.min().item()
        # random signs: more than six standard deviations of what the inexact elements add up to
        allowance = 6 * (self.inexact[start:stop] * scale).norm().item() + self.function.floor
        error = allowed = 0.0
        for _ in range(count):
            w = self.function.direction(start, stop, self.generator)
            line = self.function.along_direction(w, self.gradient, self.wanted * smallest, allowance)
            off = line.distance(0.0)
            sharp = line.uncertainty <= 2 * self.wanted * smallest or self.rms * smallest <= self.function.floor
            if not (line.smooth and off <= line.uncertainty and sharp):
                share = math.inf if math.isnan(off) else off / (stop - start) ** 0.5
                heappush(parts, (-share, start, stop))
                return
            error, allowed = max(error, off / smallest), max(allowed, line.uncertainty / smallest)
            slope = torch.dot(self.gradient, w).item()
            verdict = _Verdict((), slope, slope + line.left, 2 * off / smallest, MARGIN * line.uncertainty / smallest)
            self.worst_line = _worse(self.worst_line, verdict)
        self.errors.append((error, allowed))

    def _look(self, i: int) -> None:
        """Judge one element."""
        self.checked += 1
        actual = self.gradient[i].item()
        allowance = self.inexact[i].item() + self.function.floor
        line = self.function.along_element(i, actual, self.wanted, allowance)
        off = line.distance(actual)
        if math.isnan(off):
            off = math.inf
        index = _index(i, self.shape)
        expected = line.left if abs(actual - line.left) <= abs(actual - line.right) else line.right
        wrong = off > line.uncertainty
        if wrong and line.smooth:
            reason = f"at {list(index)} it is {actual:.9g}, but the slope is {expected:.9g} ± {line.uncertainty:.1g}"
        elif wrong:
            low, high = sorted((line.left, line.right))
            reason = f"at {list(index)}, a kink, it is {actual:.9g}, outside of the slopes {low:.9g} and {high:.9g}"
        else:
            reason = ""
        self.wrong += wrong
        blind = line.uncertainty > max(self.rms, abs(actual)) / 10 and self.rms > self.function.floor
        if not wrong and (blind or not line.smooth):
            self.kinks.append(i)
            return
        self.errors.append((off, line.uncertainty))
        verdict = _Verdict(index, actual, expected, off, line.uncertainty, reason)
        self.worst_element = _worse(self.worst_element, verdict)

    def _slopes(self, left_out: int) -> Slopes:
        error, allowed = (math.hypot(*values) for values in zip(*self.errors or [(0.0, 0.0)], strict=True))
        worst = self.worst_element or self.worst_line or _Verdict((), math.nan, math.nan, 0.0, 0.0)
        norm, rms = max(self.norm, allowed), max(self.rms, worst.allowed)
        self.kinks.sort()
        return Slopes(
            passed=not self.wrong,
            kinks=tuple(_index(i, self.shape) for i in self.kinks[:LISTED]),
            kink_count=len(self.kinks),
            index=worst.index,
            actual=worst.actual,
            expected=worst.expected,
            error=_ratio(error, norm),
            element_error=_ratio(worst.error, rms),
            tolerance=_ratio(allowed, norm),
            element_tolerance=_ratio(worst.allowed, rms),
            checked=self.checked,
            origin=self._origin(left_out),
            reason=worst.reason,
        )

    def _origin(self, left_out: int) -> str:
        size = self.gradient.numel()
        steps = f"steps {self.function.steps[0]:.1g} to {self.function.smallest:.1g}"
        if not self.checked:
            looked = f"{DIRECTIONS} random directions"
        elif self.checked == size:
            looked = "every element"
        elif left_out:
            looked = f"{self.checked} of {size} elements, {left_out} left out"
        else:
            looked = f"{self.checked} of {size} elements, random directions for the rest"
        return f"central differences, {looked}, {steps}: their change from step to step and the rounding"


@dataclass(frozen=True)
class _Verdict:
    """On an element, or on a direction (index and reason empty)."""

    index: tuple[int, ...]
    actual: float
    expected: float
    error: float
    allowed: float
    reason: str = ""


def _worse(one: _Verdict | None, other: _Verdict) -> _Verdict:
    """The one that is further beyond what is allowed."""
    if one is None or _ratio(other.error, other.allowed) > _ratio(one.error, one.allowed):
        return other
    return one


def _index(i: int, shape: torch.Size) -> tuple[int, ...]:
    return tuple(int(n) for n in torch.unravel_index(torch.tensor(i), shape))


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
