"""What holds for every backward pass, whatever it computes: it is pure, repeatable, and linear in its cotangent."""

import traceback
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import hypot, sqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradient_check.oracles import copies
from gradient_check.report import Diagnosis, Row, quoted
from gradient_check.subject import Gradients, NotAlone, Pullback, Subject, quiet
from gradient_check.tolerances import FLOOR, SAME, ratio, tolerance_of_sums

TORCH = Path(torch.__file__).parent
ORIGIN = "4 times the rounding of a sum in any order"
CHUNK = 1 << 20  # elements that are looked at in float64 at once
SINGLE = 1e-5  # what float32 inside a float64 pass may be off by
PURE = Row("pure", "pure", (), True, "", 0.0, 0.0, absolute_error=0.0)


def written_to(before: Sequence[Any], after: Sequence[Any]) -> Row | None:
    """The failure, if an argument, an output or a cotangent is not what it was."""
    if all(map(same, before, after)):
        return None
    return _impure("in place", "an argument, an output or the cotangent was written to")


def repeatable(
    subject: Subject,
    arguments: Sequence[Any],
    outputs: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    pullback: Pullback,
    first: Gradients,
) -> Row:
    """The same again is the same: backward, forward and backward, and backward after another forward pass."""

    def again(pull: Pullback) -> bool:
        try:
            return all(map(same, first, pull([c.clone() for c in cotangents])))
        except Exception:  # a graph or cache that was used up by the first call
            return False

    if not again(pullback):
        return _impure("stale", "a second call with the same cache gave other gradients")
    made, anew = subject.run(copies(arguments))
    if not all(map(same, made, outputs)):
        return _impure("stale", "a second forward pass gave another output: hand noise in as an argument")
    if not again(anew):
        return _impure("stale", "a second forward and backward pass gave other gradients")
    try:
        subject.run([v * 1.25 if i in subject.differentiable else v for i, v in enumerate(arguments)])
    except Exception:  # forward does not take other values
        return PURE
    if not again(pullback):
        return _impure("stale", "after another forward pass, the cache of the first gave other gradients")
    return PURE


def linear(
    names: Sequence[str],
    cotangents: Sequence[Tensor],
    others: Sequence[Tensor],
    pullback: Pullback,
    first: Gradients,
    terms: int,
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
                if len(parts) == 1:  # of another size, for which an algorithm may take other steps
                    limit = max(limit, SAME[total.dtype])
                if not relative <= row.relative_error:
                    row = replace(row, relative_error=relative, element_error=relative, tolerance=limit)
                if not relative <= limit:
                    reason = (
                        f"{name} is not linear in the cotangent: for {what} it is off by {relative:.2e} of the norm"
                    )
                    known = relative > SINGLE  # or it is lower precision inside
                    return replace(
                        row, passed=False, reason=reason, diagnosis=Diagnosis("not linear", reason) if known else None
                    )
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
    large, small = (32.0, 1 / 32) if cotangents[0].dtype == torch.float16 else (2.0**10, 2.0**-30)
    for size in (large, small):
        yield f"{size:.3g} u", [(size, first)], pullback([size * u for u in cotangents])
    if len(cotangents) > 1:
        alone = [pullback([u if i == k else None for i, u in enumerate(cotangents)]) for k in range(len(cotangents))]
        yield "the outputs one by one", [(1.0, gradients) for gradients in alone], first


def alone(
    subject: Subject,
    arguments: Sequence[Any],
    cotangents: Sequence[Tensor],
    first: Gradients,
    terms: int,
    notes: list[str],
) -> Row:
    """Each gradient is the same where it is the only one that is asked for, as when other parameters are frozen.

    One that cannot be had alone by design, which torch says, is no mistake: the notes quote it.
    """
    row = Row("alone", "each alone", (), True, "", 0.0, 0.0, origin=ORIGIN)
    assert subject.only is not None
    for i, name, together in zip(subject.differentiable, subject.gradient_names, first, strict=True):
        if together is None:
            continue
        try:
            with quiet():
                gradient = subject.only(i).run(copies(arguments))[1](cotangents)[0]
        except Exception as error:
            reason = f"{name} cannot be had alone: {error}"
            if _by_design(error):
                notes.append(reason)
                continue
            return replace(row, passed=False, reason=reason, diagnosis=Diagnosis("raised", reason))
        relative, limit = _mismatch([(1.0, gradient)], together, cotangents, terms)
        if not relative <= limit:
            reason = f"{name} is another where no other gradient is asked for: off by {relative:.2e} of the norm"
            return replace(row, passed=False, reason=reason, relative_error=relative, tolerance=limit)
    return row


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


def same(a: Any, b: Any) -> bool:
    """Bit for bit; NaN equals NaN."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return not isinstance(a, Tensor) and not isinstance(b, Tensor)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return bool(((a == b) | ((a != a) & (b != b))).all())


def _impure(kind: str, reason: str) -> Row:
    return Row("pure", "pure", (), False, reason, diagnosis=Diagnosis(kind, reason))
