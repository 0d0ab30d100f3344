"""The verdict: a gradient held against claims, so strictly that a wrong one cannot pass. It does not know who claims.

Shape, dtype and device must be equal, and NaN and infinity never pass. Where the claims show nothing, as zeros do, to
agree with them is a failure.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import floor, hypot, inf, isfinite, log2, sqrt

import torch
from torch import Tensor

from gradient_check.claims import Claims, Direction, Measured, SlopeClaim
from gradient_check.report import Diagnosis, Row
from gradient_check.tolerances import ratio

ALIKE = 1e-3  # of the gradient: two slopes that differ by less are called one


def judge(claims: Claims, actual: Tensor | None) -> Row:
    """The verdict on one tensor."""
    shape = tuple(claims.value.shape)
    blank = Row(claims.name, claims.label, shape, False, oracle=claims.oracle)
    if actual is None:
        missing = Diagnosis("missing", "backward returned nothing for it")
        return replace(blank, reason="no gradient was returned", diagnosis=missing)
    for what, got, wanted in (
        ("shape", tuple(actual.shape), shape),
        ("dtype", actual.dtype, claims.dtype),
        ("device", actual.device, claims.device),
    ):
        if got != wanted:
            reason = f"its {what} is {got}, not {wanted}"
            known = Diagnosis("dtype", f"computed or returned in {got}") if what == "dtype" else None
            return replace(blank, reason=reason, diagnosis=known)
    if actual.numel() == 0:
        return replace(blank, passed=True, relative_error=0.0, element_error=0.0, absolute_error=0.0, ulps=0.0)
    given = actual.detach().cpu()
    if not claims.dtype.is_floating_point:
        return _exactly(blank, given, claims.value)
    row = _measured(blank, given, claims)
    if not row.agrees:  # NaN does not
        return replace(row, reason=claims.inconclusive or _difference(row), inconclusive=bool(claims.inconclusive))
    return replace(row, reason=claims.blind) if claims.blind else replace(row, passed=True)


def judge_along(direction: Direction, gradients: Sequence[Tensor]) -> Row:
    """The verdict on all gradients together."""
    parts = zip(gradients, direction.u, strict=True)
    actual = sum((g.detach().double().cpu() * u.cpu()).sum().item() for g, u in parts)
    error = abs(actual - direction.value)
    relative, allowed = ratio(error, direction.size), ratio(direction.slack, direction.size)
    passed = error <= direction.slack
    reason = "" if passed else direction.wrong.format(actual=actual, value=direction.value, error=error)
    return Row(
        direction.title, direction.title, (), passed, reason, relative, relative, allowed, allowed, direction.origin,
        oracle=direction.oracle, absolute_error=error, actual=actual, expected=direction.value,
        diagnosis=Diagnosis(direction.diagnosis, reason) if direction.diagnosis and not passed else None,
    )  # fmt: skip


def judge_measured(measured: Measured, name: str, label: str, oracle: str) -> Row:
    """The verdict on one tensor of which some elements and directions are known: elements alone can be wrong.

    Where directions cleared all, the row has no `index`, and its values are the slopes along the worst of them.
    """
    elements = [claim for claim in measured.claims if claim.count == 1]
    worst = max(elements or measured.claims, key=lambda claim: ratio(*claim.of_element()), default=None)
    error, allowed = worst.of_element() if worst else (0.0, 0.0)
    errors = hypot(*(claim.off / claim.size for claim in measured.claims))
    limits = hypot(*(claim.slope.uncertainty / claim.size for claim in measured.claims))
    truth = hypot(*(claim.nearest for claim in elements if isfinite(claim.nearest)))
    norm = max(measured.norm, truth, limits)
    rms = max(measured.rms, truth / sqrt(measured.count or 1), allowed)
    row = Row(
        name, label, measured.shape, not any(claim.wrong for claim in elements), "", ratio(errors, norm),
        ratio(error, rms), ratio(limits, norm), ratio(allowed, rms), measured.origin, oracle, kinks=measured.kinks,
    )  # fmt: skip
    if worst is None:
        return row
    reason = _off_the_slopes(worst, elements) if elements and worst.wrong else ""
    return replace(
        row, reason=reason, absolute_error=abs(worst.actual - worst.nearest), index=worst.index, actual=worst.actual,
        expected=worst.nearest,
    )  # fmt: skip


def _off_the_slopes(worst: SlopeClaim, elements: Sequence[SlopeClaim]) -> str:
    slope, where, it = worst.slope, f"at {list(worst.index)}", f"it is {worst.actual:.9g}"
    if all(claim.slope.left == claim.slope.right == 0 for claim in elements):
        said = "forward is constant there: it rounds or compares, or takes steps in a lower precision"
        return f"{where} {it}, but {said}; declare a gradient that is meant with `intended`"
    low, high = sorted((slope.left, slope.right))
    if slope.smooth or high - low <= ALIKE * abs(worst.nearest):
        return f"{where} {it}, but the slope is {worst.nearest:.9g} ± {max(slope.uncertainty, high - low):.1g}"
    return f"{where}, a kink, {it}, outside of the slopes {low:.9g} and {high:.9g}"


def _measured(row: Row, actual: Tensor, claims: Claims) -> Row:
    """The errors, where they are largest, and how many units in the last place the two values there are apart."""
    distances = claims.distances(actual)
    worst = rest = int(distances.argmax())  # the first NaN, if there is one
    largest = distances.flatten()[worst].item()
    index: tuple[int, ...] = ()
    for size in reversed(actual.shape):
        rest, i = divmod(rest, size)
        index = (i, *index)
    got, wanted = actual.flatten()[worst].item(), claims.value.flatten()[worst].item()
    format = torch.finfo(claims.dtype)
    exponent = floor(log2(max(abs(wanted), format.tiny))) if abs(wanted) < inf else 0
    return replace(
        row,
        relative_error=ratio(distances.norm().item(), claims.size),
        element_error=ratio(largest, claims.rms),
        absolute_error=largest,
        tolerance=claims.limit.norm,
        element_tolerance=claims.limit.element,
        origin=claims.limit.origin,
        index=index,
        actual=got,
        expected=wanted,
        ulps=abs(got - wanted) / (format.eps * 2.0**exponent),
        kinks=0 if claims.kinks is None else int(claims.kinks.sum()),
    )


def _difference(row: Row) -> str:
    where = f"at {list(row.index)} " if row.index else ""
    if not isfinite(row.absolute_error):
        return f"{where}it is {row.actual:.9g}, expected {row.expected:.9g}"
    return (
        f"{where}it is {row.actual:.9g}, expected {row.expected:.9g}; off by {row.relative_error:.2e} of the norm "
        f"(allowed {row.tolerance:.1e}), here by {row.element_error:.2e} of the root mean square "
        f"({row.element_tolerance:.1e})"
    )


def _exactly(row: Row, actual: Tensor, expected: Tensor) -> Row:
    different = actual != expected
    count = int(different.sum())
    if not count:
        return replace(row, passed=True, relative_error=0.0, element_error=0.0, absolute_error=0.0, ulps=0.0)
    where = [int(i) for i in different.nonzero()[0]] if actual.dim() else []
    got, wanted = actual[tuple(where)].item(), expected[tuple(where)].item()
    return replace(row, reason=f"{count} of {actual.numel()} differ; at {where} it is {got}, expected {wanted}")
