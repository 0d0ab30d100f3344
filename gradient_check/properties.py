"""What holds for every backward pass, whatever it computes: it is pure, repeatable, and linear in its cotangent."""

from collections.abc import Sequence
from dataclasses import replace
from math import hypot
from typing import Any

import torch
from torch import Tensor

from gradient_check.report import Diagnosis, Row
from gradient_check.subject import Gradients, Pullback, Subject
from gradient_check.tolerances import FLOOR, ratio, tolerance_of_sums

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
    """backward(¾ u + v) = ¾ backward(u) + backward(v)"""
    row = Row("linear", "linear", (), True, "", 0.0, 0.0, absolute_error=0.0)
    try:
        second = pullback([v.clone() for v in others])
        joint = pullback([0.75 * u + v for u, v in zip(cotangents, others, strict=True)])
    except Exception as error:
        reason = f"backward takes one cotangent and raises for another: {error}"
        return replace(row, passed=False, reason=reason, diagnosis=Diagnosis("not linear", reason))
    for name, a, b, ab in zip(names, first, second, joint, strict=True):
        if a is None or b is None or ab is None:
            continue
        finite = a.isfinite() & b.isfinite() & ab.isfinite()  # the slope of √x at 0 is not
        u, v, both = (gradient.detach()[finite].double() for gradient in (a, b, ab))
        limit = 4 * tolerance_of_sums(ab.dtype, terms).norm
        difference = (both - (0.75 * u + v)).norm().item()
        if difference <= FLOOR[ab.dtype] * torch.finfo(ab.dtype).eps * hypot(*(c.norm().item() for c in cotangents)):
            continue  # also where the gradient is zero in exact arithmetic
        relative = ratio(difference, 0.75 * u.norm().item() + v.norm().item())
        if not relative <= row.relative_error:
            row = replace(row, relative_error=relative, element_error=relative, tolerance=limit)
        if not relative <= limit:
            reason = f"{name} is not linear in the cotangent: off by {relative:.2e} of the norm"
            diagnosis = Diagnosis("not linear", reason) if relative > SINGLE else None  # or lower precision inside
            return replace(row, passed=False, reason=reason, diagnosis=diagnosis)
    return row


def copies(values: Sequence[Any]) -> list[Any]:
    return [value.clone() if isinstance(value, Tensor) else value for value in values]


def same(a: Any, b: Any) -> bool:
    """Bit for bit; NaN equals NaN."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return not isinstance(a, Tensor) and not isinstance(b, Tensor)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return bool(((a == b) | ((a != a) & (b != b))).all())


def _impure(kind: str, reason: str) -> Row:
    return Row("pure", "pure", (), False, reason, diagnosis=Diagnosis(kind, reason))
