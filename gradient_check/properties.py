"""What holds for every backward pass, whatever it computes: it is pure, repeatable, and linear in its cotangent."""

import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import hypot, inf, isfinite, sqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradient_check.cases import LAYOUTS
from gradient_check.oracles import contiguous, copies, doubled, longest_sum, moved_by, moved_by_rounding
from gradient_check.report import Diagnosis, Row, quoted
from gradient_check.subject import Gradients, NotAlone, Pullback, Subject, quiet
from gradient_check.tolerances import FLOOR, SAME, ratio, tolerance_of_sums

TORCH = Path(torch.__file__).parent
ORIGIN = "4 times the rounding of a sum in any order"
CHUNK = 1 << 20  # elements that are looked at in float64 at once
ORDER = 1e-6  # of the norm: by less, two forward passes may differ because they add up in another order
NOISE = "give its noise as an argument (a mask, a seed or the state of a torch.Generator)"
SINGLE = 1e-5  # what float32 inside a float64 pass may be off by
PURE = Row("pure", "pure", (), True, "", 0.0, 0.0, absolute_error=0.0)


def computes_in_single(subject: Subject, arguments: Sequence[Any], notes: list[str]) -> bool:
    """Whether forward rounds an argument of float64 to float32.

    Then what rounds to the same number gives the same, bit for bit, and the next numbers of float32 something else.
    """
    own, arguments = arguments, doubled(contiguous(arguments))
    for i in subject.differentiable:
        rounded = arguments[i].float().double()
        beside = [rounded, moved_by(2.0**-27, rounded, 0), moved_by(2.0**-22, rounded, 0)]
        try:
            made = [subject.run([*copies(arguments[:i]), v, *copies(arguments[i + 1 :])])[0] for v in beside]
        except Exception as error:  # it takes no float64, or no values beside these
            if own[i].dtype == torch.float64:
                notes.append(f"whether forward rounds to float32 is not known: it raised {quoted(error)}")
            return False
        if all(map(torch.equal, made[0], made[1])):
            changed = sum(int((a != b).sum()) for a, b in zip(made[0], made[2], strict=True))
            if 2 * changed > sum(output.numel() for output in made[0]):
                return True
    return False


def written_to(before: Sequence[Any], after: Sequence[Any]) -> Row | None:
    """The failure, if an argument, an output or a cotangent is not what it was."""
    if all(map(same, before, after)):
        return None
    return _impure("in place", "an argument, an output or the cotangent was written to")


def unsettled(subject: Subject, arguments: Sequence[Any], outputs: Sequence[Tensor]) -> Row | None:
    """The failure, if two forward passes of the same arguments give two outputs, by more than the order of a sum."""

    def another(wanted: Sequence[Tensor]) -> float:
        made = subject.run(copies(arguments))[0]
        return max(map(distance, made, wanted)) if len(made) == len(wanted) else inf

    if (off := another(outputs)) <= max(ORDER, *(4 * torch.finfo(output.dtype).eps for output in outputs)):
        return None
    said = f"a second pass gave another output{_so_far(off)}"
    with torch.random.fork_rng():  # which leaves torch's generator to the caller as it was
        torch.manual_seed(0)
        seeded = subject.run(copies(arguments))[0]
        changes = []
        for seed in (1, 0):
            torch.manual_seed(seed)
            changes.append(another(seeded) > 0)
    if changes == [True, False]:
        return _impure("random", f"forward is random: {said}; {NOISE}, or set a module to `.eval()`")
    return _impure("stale", f"{said}; if forward draws noise, {NOISE}; if it keeps a state, give that as one")


@dataclass(frozen=True)
class Repeated:
    """Whether the example gives again what it gave, but for `slack`, relative to the norm."""

    subject: Subject
    arguments: Sequence[Any]
    outputs: Sequence[Tensor]
    cotangents: Sequence[Tensor]
    pullback: Pullback
    first: Gradients  # what it gave
    slack: float = 0.0

    def at_once(self, notes: list[str]) -> Row:
        """The same again is the same: backward, forward and backward, and backward after another forward pass."""
        if failure := self._again(self.pullback, "a second call with the same cache") or self._anew("a second"):
            return failure
        try:
            self.subject.run(
                [v * 1.25 if i in self.subject.differentiable else v for i, v in enumerate(self.arguments)]
            )
        except Exception as error:  # forward does not take other values
            notes.append(f"a backward after another forward pass was not asked: that raised {quoted(error)}")
            return PURE
        return self._again(self.pullback, "after another forward pass, the cache of the first") or PURE

    def after(self, case: str) -> list[Row]:
        """The failure, if any, after arguments of another shape were fed."""
        found = self._again(self.pullback, f"after a forward pass of another shape ({case}), the cache of the first")
        found = found or self._anew(f"after one of another shape ({case}), a")
        return [replace(found, case=case)] if found else []

    def _anew(self, which: str) -> Row | None:
        try:
            made, pullback = self.subject.run(copies(self.arguments))
        except Exception as error:
            return _impure("stale", f"{which} forward pass raised {quoted(error)}")
        if failure := self._other(made, self.outputs, f"{which} forward pass gave another output"):
            return failure
        return self._again(pullback, f"{which} forward and backward pass")

    def _again(self, pullback: Pullback, what: str) -> Row | None:
        try:
            found = pullback(copies(self.cotangents))
        except Exception as error:  # a graph or cache that was used up by the first call
            return _impure("stale", f"{what} raised {quoted(error)}")
        return self._other(found, self.first, f"{what} gave other gradients")

    def _other(self, found: Sequence[Tensor | None], wanted: Sequence[Tensor | None], said: str) -> Row | None:
        pairs = list(zip(found, wanted, strict=False))
        if len(found) == len(wanted) and all(same(a, b, self.slack) for a, b in pairs):
            return None
        off = max((inf if a is None or b is None else distance(a, b) for a, b in pairs if a is not b), default=inf)
        order = f"; if that is the order of a sum, allow it with nondeterministic={ORDER:g}" if off <= ORDER else ""
        return _impure("stale", f"{said}{_so_far(off)}{order}")


def in_any_layout(
    subject: Subject, arguments: Sequence[Any], cotangents: Sequence[Tensor], notes: list[str]
) -> list[Row]:
    """In float32, the same gradients wherever the numbers of a cotangent lie in memory, if forward takes float32."""
    single = [v.float() if isinstance(v, Tensor) and v.is_floating_point() else v for v in arguments]
    row = Row("layouts", "gradients", (), True, "", 0.0, 0.0, origin=ORIGIN, case="cotangents in float32")
    try:
        outputs, pullback = subject.run(single)
        drawn = [c.to(output.dtype) for c, output in zip(cotangents, outputs, strict=True)]
        pullback(copies(drawn))
    except Exception as error:  # it is made for float64 alone
        notes.append(f"layouts were not fed in float32: {quoted(error)}")
        return []
    limit = 4 * tolerance_of_sums(torch.float32, longest_sum((*single, *outputs))).norm
    for name, layout in LAYOUTS.items():
        fed = [c if (new := layout(c)) is None else new for c in drawn]
        if all(new is c for new, c in zip(fed, drawn, strict=True)):
            continue
        what = f"in float32, for a cotangent that is {name}"
        try:
            wanted, found = pullback(contiguous(fed)), pullback(fed)
        except Exception as error:
            reason = f"{what}, {subject.written} raised {quoted(error)}"
            return [replace(row, passed=False, reason=reason, diagnosis=Diagnosis("strided", reason))]
        pairs = [(a, b) for a, b in zip(found, wanted, strict=True) if a is not None and b is not None]
        off = max(map(distance, *zip(*pairs, strict=True)), default=0.0)
        if not off <= limit:
            nearby = pullback([moved_by_rounding(c, 0) for c in contiguous(fed)])
            moved = max(distance(a, b) for a, b in zip(nearby, wanted, strict=True) if a is not None and b is not None)
            if not off <= 16 * moved:
                reason = f"{what}, it gives other gradients than for the same numbers side by side"
                failed = replace(row, passed=False, relative_error=off, tolerance=limit)
                return [replace(failed, reason=reason, diagnosis=Diagnosis("strided", reason))]
        row = replace(row, relative_error=max(off, row.relative_error), tolerance=limit)
    return [row]


def linear(
    names: Sequence[str],
    cotangents: Sequence[Tensor],
    others: Sequence[Tensor],
    pullback: Pullback,
    first: Gradients,
    terms: int,
    slack: float,
) -> Row:
    """backward(¾ u + v) = ¾ backward(u) + backward(v), at all sizes, and the sum over the outputs, each fed alone."""
    row = Row("linear", "linear", (), True, "", 0.0, 0.0, origin=ORIGIN)
    try:
        for what, parts, whole in _sums(cotangents, others, pullback, first):
            for k, name in enumerate(names):
                total = whole[k]
                if total is None:
                    continue
                relative, limit = _mismatch([(c, gradients[k]) for c, gradients in parts], total, cotangents, terms)
                limit += slack
                if len(parts) == 1:  # of another size, for which an algorithm may take other steps
                    limit = max(limit, SAME[total.dtype])
                if not relative <= row.relative_error:
                    row = replace(row, relative_error=relative, element_error=relative, tolerance=limit)
                if not relative <= limit:
                    said = f"for {what} it is off by {relative:.2e} of the norm"
                    reason = f"{name} is not linear in the cotangent: {said}"
                    known = Diagnosis("not linear", reason) if relative > SINGLE else None  # or lower precision inside
                    return replace(row, passed=False, reason=reason, diagnosis=known)
    except Exception as error:
        reason = f"backward takes one cotangent and raises for another: {quoted(error)}"
        return replace(row, passed=False, reason=reason, diagnosis=Diagnosis("not linear", reason))
    return row


def _sums(
    cotangents: Sequence[Tensor], others: Sequence[Tensor], pullback: Pullback, first: Gradients
) -> Iterator[tuple[str, list[tuple[float, Gradients]], Gradients]]:
    """What is fed, the gradients of its parts with their factors, and those of the whole; one after the other."""
    joint = pullback([0.75 * u + v for u, v in zip(cotangents, others, strict=True)])
    yield "¾ u + v", [(0.75, first), (1.0, pullback(copies(others)))], joint
    del joint
    if any(len(u) > 1 for u in cotangents if u.dim()):
        halves = [[_every_second(u, k) for u in cotangents] for k in (0, 1)]
        yield "a cotangent with rows of zeros", [(1.0, pullback(half)) for half in halves], first
    large, small = (32.0, 1 / 32) if cotangents[0].dtype == torch.float16 else (2.0**10, 2.0**-30)
    for size in (large, small):
        yield f"{size:.3g} u", [(size, first)], pullback([size * u for u in cotangents])
    if len(cotangents) > 1:
        alone = [pullback([u if i == k else None for i, u in enumerate(cotangents)]) for k in range(len(cotangents))]
        yield "the outputs one by one", [(1.0, gradients) for gradients in alone], first


def _every_second(tensor: Tensor, first: int) -> Tensor:
    """Its rows from the first on, zero in the others. A number is one row."""
    rows = tensor if tensor.dim() else tensor[None]
    kept = torch.arange(len(rows), device=rows.device) % 2 == first
    return (rows * kept.view(-1, *[1] * (rows.dim() - 1))).view(tensor.shape)


def alone(
    subject: Subject,
    arguments: Sequence[Any],
    cotangents: Sequence[Tensor],
    first: Gradients,
    terms: int,
    slack: float,
    notes: list[str],
) -> Row:
    """Gradients are the same where each is the only one that is asked for, or one is not, as frozen parameters are.

    What cannot be had so by design, which torch says, is no mistake: the notes quote it.
    """
    row = Row("alone", "each alone", (), True, "", 0.0, 0.0, origin=ORIGIN)
    assert subject.only is not None
    whole = dict(zip(subject.gradient_names, first, strict=True))
    for positions, where in _fewer(subject):
        try:
            with quiet():
                fewer = subject.only(positions)
                found = dict(zip(fewer.gradient_names, fewer.run(copies(arguments))[1](cotangents), strict=True))
        except Exception as error:
            reason = f"gradients cannot be had {where}: {quoted(error)}"
            if _by_design(error):
                notes.append(reason)
                continue
            return replace(row, passed=False, reason=reason, diagnosis=Diagnosis("raised", reason))
        for name, gradient in found.items():
            together = whole[name]
            if together is None:
                continue
            if gradient is None and together.any():
                reason = f"{name} is missing {where}"
                if subject.differentiable[subject.gradient_names.index(name)] in subject.inside:
                    notes.append(f"{reason}: a .backward() inside makes it")
                    continue
                return replace(row, passed=False, reason=reason, diagnosis=Diagnosis("missing", reason))
            relative, limit = _mismatch([(1.0, gradient)], together, cotangents, terms)
            if not relative <= limit + slack:
                reason = f"{name} is another {where}: off by {relative:.2e} of the norm"
                return replace(row, passed=False, reason=reason, relative_error=relative, tolerance=limit)
    return row


def _fewer(subject: Subject) -> Iterator[tuple[tuple[int, ...], str]]:
    """One of the differentiable arguments, and all but one; in words."""
    every = subject.differentiable
    for i in every:
        yield (i,), f"where {subject.names[i]} alone wants a gradient"
    for i in every if len(every) > 2 else ():
        yield tuple(k for k in every if k != i), f"where {subject.names[i]} wants no gradient"


def _by_design(error: Exception) -> bool:
    """Whether torch refuses, in words of its own, rather than that something went wrong in what it was given."""
    if isinstance(error, NotAlone | NotImplementedError):
        return True
    frame = traceback.extract_tb(error.__traceback__)[-1]
    own = Path(frame.filename).is_relative_to(TORCH) and not Path(frame.filename).is_relative_to(TORCH / "nn")
    return own and (frame.line or "").startswith("raise ")


def _mismatch(
    parts: Sequence[tuple[float, Tensor | None]], whole: Tensor, cotangents: Sequence[Tensor], terms: int
) -> tuple[float, float]:
    """How far a sum of gradients (None is zero) is from the whole, relative to its summands, and how far it may be."""
    given = [(c, g.detach().flatten().split(CHUNK)) for c, g in parts if g is not None]
    squares, sizes = 0.0, [0.0] * len(given)
    for i, chunk in enumerate(whole.detach().flatten().split(CHUNK)):
        difference = chunk.double()
        finite = chunk.isfinite()  # the slope of √x at 0 is not
        for k, (c, chunks) in enumerate(given):
            part = c * chunks[i].double()
            if len(given) > 1 and (finite & ~part.isfinite()).any():
                return inf, 0.0
            finite &= part.isfinite()
            difference = difference - part
            sizes[k] += torch.where(finite, part, 0.0).pow(2).sum().item()
        squares += torch.where(finite, difference, 0.0).pow(2).sum().item()
    difference_norm, size = sqrt(squares), sum(map(sqrt, sizes))
    limit = 4 * tolerance_of_sums(whole.dtype, terms).norm
    lost = FLOOR[whole.dtype] * torch.finfo(whole.dtype).eps * hypot(*(c.norm().item() for c in cotangents))
    relative = ratio(difference_norm, size)
    if relative > limit and difference_norm <= lost * max(abs(c) for c, _ in parts):
        relative = 0.0  # the gradient is zero in exact arithmetic
    return relative, limit


def same(a: Any, b: Any, slack: float = 0.0) -> bool:
    """Bit for bit, or within `slack` of the norm; NaN equals NaN."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return not isinstance(a, Tensor) and not isinstance(b, Tensor)
    return a.dtype == b.dtype and distance(a, b) <= slack


def distance(a: Tensor, b: Tensor) -> float:
    """‖a − b‖ / ‖b‖, where NaN equals NaN; infinite for two shapes, and NaN for a NaN in one of them."""
    if a.shape != b.shape:
        return inf
    equal = (a == b) | ((a != a) & (b != b))
    if equal.all():
        return 0.0
    difference = torch.where(equal, 0.0, (a.detach() - b.detach()).double()).norm().item()
    return ratio(difference, b.detach().double().nan_to_num(0.0, 0.0, 0.0).norm().item())


def _so_far(off: float) -> str:
    return f", off by {off:.1e} of the norm" if isfinite(off) else ""


def _impure(kind: str, reason: str) -> Row:
    return Row("pure", "pure", (), False, reason, diagnosis=Diagnosis(kind, reason))
