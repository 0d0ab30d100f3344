"""Gradients against the slopes of the forward pass itself: a dot product in forward mode, and central differences."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import hypot, isfinite, sqrt
from typing import Any

import torch
from torch import Tensor

from gradient_check.compare import Judgement, judge
from gradient_check.differences import cleared, judge_slopes, one_sided
from gradient_check.oracles import directional_derivatives, nudged, outputs_of, random_direction
from gradient_check.report import Diagnosis, Row
from gradient_check.subject import Run
from gradient_check.tolerances import FLOOR, magnified, ratio, tolerance, tolerance_of_sums
from gradient_check.truth import doubled, plain

KINKS_LOOKED_AT = 200
ORACLE = "differences"


def dot_product(
    forward: Callable[..., Any],
    positions: Sequence[int],
    run: Run,
    generator: torch.Generator,
) -> Row:
    """⟨d_output, J u⟩ = ⟨Jᵀ d_output, u⟩ for a random u. Raises whatever a forward without forward mode raises."""
    gradients = [gradient for gradient in run.gradients.values() if gradient is not None]
    dtype = max((t.dtype for t in (*run.cotangents, *gradients)), key=lambda dtype: torch.finfo(dtype).eps)
    arguments, cotangents = doubled(plain(run.arguments)), doubled(plain(run.cotangents))
    directions = [random_direction(arguments[i], generator) for i in positions]
    ahead, again = (
        _terms(cotangents, directional_derivatives(forward, at, positions, directions))
        for at in (arguments, nudged(arguments, positions))
    )
    back = _terms([gradient.double() for gradient in gradients], directions)
    size = ahead.norm().item() + back.norm().item()
    error = abs((ahead.sum() - back.sum()).item())
    limit = tolerance(dtype) if dtype == torch.float64 else tolerance_of_sums(dtype, max(len(ahead), len(back)))
    allowed = limit.norm + magnified(dtype) * ratio(abs((again.sum() - ahead.sum()).item()), size)
    lost = FLOOR[dtype] * torch.finfo(dtype).eps * _size(cotangents) * _size(directions)
    relative = ratio(error, size)
    if relative > allowed and error <= lost:
        relative = 0.0  # the gradient is zero in exact arithmetic
    passed = relative <= allowed
    reason = "" if passed else f"⟨d_output, J u⟩ and ⟨Jᵀ d_output, u⟩ differ by {error:.3g}"
    return Row(
        "dot product", "dot product", (), passed, reason, relative, relative, allowed, allowed, limit.origin,
        oracle="dot product", absolute_error=error,
    )  # fmt: skip


def differences(
    forward: Callable[..., Any],
    position: int,
    run: Run,
    name: str,
    terms: int,
    ordinary: float,
    generator: torch.Generator,
) -> Row:
    """The gradient of the argument at `position` against central differences. Raises whatever the forward pass raises.

    Below float64 it may be off by what sums of so many `terms` are; its norm counts as no less than that of a gradient
    whose root mean square is `ordinary`.
    """
    argument, gradient = run.arguments[position], run.gradients[name]
    blank = Row(name, name, tuple(argument.shape), False, oracle=ORACLE)
    if gradient is None or (gradient.shape, gradient.dtype) != (argument.shape, argument.dtype):
        return judge(name, gradient, Judgement(None, argument, name, argument.dtype, argument.device, oracle=ORACLE))
    summands, point = summands_along(forward, [position], run)
    gradient = _without_infinities(gradient, summands, point)
    if not gradient.isfinite().all():
        where = tuple(int(k) for k in (~gradient.isfinite()).nonzero()[0])
        text = f"at {list(where)} it is {gradient[where].item()}"
        return replace(blank, reason=text, index=where, diagnosis=Diagnosis("nan", text))
    accuracy = None if argument.dtype == torch.float64 else tolerance_of_sums(argument.dtype, terms).norm
    exact = gradient.detach().double()
    found = judge_slopes(summands, point, exact, accuracy=accuracy, ordinary=ordinary, generator=generator)
    return replace(
        blank,
        passed=found.passed,
        reason=found.reason,
        relative_error=found.error,
        element_error=found.element_error,
        tolerance=found.tolerance,
        element_tolerance=found.element_tolerance,
        origin=found.origin,
        index=found.index,
        actual=found.actual,
        expected=found.expected,
        absolute_error=abs(found.actual - found.expected),
        kinks=found.kink_count,
    )


def all_cleared(
    forward: Callable[..., Any],
    positions: Sequence[int],
    run: Run,
    ordinary: float,
    generator: torch.Generator,
) -> Row | None:
    """All gradients, in float64, along directions through all arguments at once; None where that finds something."""
    gradients = [gradient for gradient in run.gradients.values() if gradient is not None]
    if len(gradients) < len(run.gradients) or not all(gradient.isfinite().all() for gradient in gradients):
        return None
    together = torch.cat([gradient.detach().flatten() for gradient in gradients])
    summands, point = summands_along(forward, positions, run)
    found = cleared(summands, point, together, ordinary=ordinary, generator=generator)
    if found is None:
        return None
    errors, limits = (found.error, found.element_error), (found.tolerance, found.element_tolerance)
    return Row("gradients", "all gradients", (), True, "", *errors, *limits, found.origin, ORACLE)


def _without_infinities(gradient: Tensor, summands: Callable[[Tensor], Tensor], point: Tensor) -> Tensor:
    """Zero instead of the infinite elements, if the slopes there are infinite too, as √x has them at 0."""
    infinite = gradient.isinf()
    if not infinite.any():
        return gradient
    indices = [tuple(int(k) for k in index) for index in infinite.nonzero()[:KINKS_LOOKED_AT]]
    sides = one_sided(summands, point, indices)
    return gradient if any(isfinite(a) and isfinite(b) for a, b, _ in sides) else gradient.masked_fill(infinite, 0.0)


def summands_along(
    forward: Callable[..., Any], positions: Sequence[int], run: Run
) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The summands of ⟨d_output, forward(…, v, …)⟩ as a function of v, and the v of the example.

    v is the argument at the one position, or the arguments at several, flat and one after the other. In float64 where
    forward takes it, otherwise (a kernel of one dtype) in the example's own.
    """
    cotangents = doubled(plain(run.cotangents))

    def along(fixed: list[Any]) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        shapes = [fixed[i].shape for i in positions]
        point = fixed[positions[0]] if len(positions) == 1 else torch.cat([fixed[i].flatten() for i in positions])

        def summands(v: Tensor) -> Tensor:
            parts = [v] if len(positions) == 1 else v.split([shape.numel() for shape in shapes])
            fed = list(fixed)
            for i, shape, part in zip(positions, shapes, parts, strict=True):
                fed[i] = part.view(shape)
            with torch.no_grad():
                outputs = outputs_of(forward(*fed))
            return torch.cat([(c * o.double()).flatten() for c, o in zip(cotangents, outputs, strict=False)])

        return summands, point

    own = plain(run.arguments)
    summands, point = along(doubled(own))
    try:
        summands(point)
    except Exception:
        return along(own)
    return summands, point


def excused_at_kinks(
    row: Row,
    actual: Tensor | None,
    against: Judgement,
    forward: Callable[..., Any],
    position: int,
    run: Run,
) -> Row:
    """At a kink every slope between those of its two sides is right: wrong elements all of that kind are no failure.

    The same holds where forward is smooth but made of pieces that are not, as max(x, 0) + log(1 + exp(−|x|)) is at 0:
    there it is autograd that is wrong, and not between the slopes.
    """
    if row.passed or actual is None or not isfinite(row.absolute_error):
        return row
    truth = against.truth
    rms = truth.norm().item() / sqrt(truth.numel())
    wrong = ((actual.detach().double() - truth).abs() > row.element_tolerance * rms).nonzero()
    if not 0 < len(wrong) <= KINKS_LOOKED_AT:
        return row
    indices = [tuple(int(k) for k in index) for index in wrong]
    summands, point = summands_along(forward, [position], run)
    units = FLOOR[actual.dtype] * torch.finfo(actual.dtype).eps
    outside = 0
    for index, (left, right, uncertain) in zip(indices, one_sided(summands, point, indices), strict=True):
        if not (isfinite(left) and isfinite(right)):
            return row  # the border of where forward is defined, or steeper than steps can tell: the oracle knows
        slack = 2 * uncertain + units * max(abs(left), abs(right))
        low, high = min(left, right) - slack, max(left, right) + slack
        if not abs(right - left) > 4 * uncertain and low <= truth[index].item() <= high:
            return row  # smooth there, and the oracle is right
        outside += not low <= actual[index].item() <= high
    if outside:
        text = f"only wrong at a kink: {outside} elements are not between the slopes of the two sides"
        return replace(row, diagnosis=Diagnosis("kink", text))
    mended = actual.detach().clone()
    for index in indices:
        mended[index] = truth[index].to(actual.dtype)
    again = judge(row.name, mended, against)
    return replace(again, kinks=len(indices)) if again.passed else row


def together(
    forward: Callable[..., Any],
    positions: Sequence[int],
    run: Run,
    generator: torch.Generator,
) -> Row:
    """At a tie, where equal values move together: forward is smooth then, and the gradients must add up to its slope.

    An element alone may claim the whole cotangent of a maximum, and so may its equal; both at once may not. Zeros move
    apart from the rest, because other kinks lie there. Raises whatever the forward pass raises.
    """
    gradients = [gradient for gradient in run.gradients.values() if gradient is not None]
    fixed, cotangents = doubled(plain(run.arguments)), doubled(plain(run.cotangents))
    points = [fixed[i] for i in positions]
    values, which = torch.cat([v.flatten() for v in points]).unique(return_inverse=True)
    move = random_direction(values, generator)[which]
    groups = torch.stack([move * (values[which] != 0), move * (values[which] == 0)])

    def summands(t: Tensor) -> Tensor:
        fed = list(fixed)
        moves = (t @ groups).split([v.numel() for v in points])
        for i, v, moved in zip(positions, points, moves, strict=True):
            fed[i] = v + moved.view(v.shape)
        with torch.no_grad():
            return _terms(cotangents, outputs_of(forward(*fed)))

    claimed = groups @ torch.cat([g.detach().double().flatten() for g in gradients])
    row = Row("ties", "ties", (), True, "", 0.0, 0.0, oracle=ORACLE, absolute_error=0.0)
    at_rest = torch.zeros(2, dtype=torch.float64, device=values.device)
    units = FLOOR[gradients[0].dtype] * torch.finfo(gradients[0].dtype).eps
    for slope, (left, right, uncertain) in zip(
        claimed.tolist(), one_sided(summands, at_rest, [(0,), (1,)]), strict=True
    ):
        allowed = 4 * uncertain + units * groups.norm().item() * claimed.norm().item()
        if abs(right - left) <= allowed < abs(slope - left):
            text = f"equal values together claim {slope:.6g} where the slope is {left:.6g}: a tie was not shared out"
            return replace(
                row, passed=False, reason=text, diagnosis=Diagnosis("kink", text), actual=slope, expected=left,
                absolute_error=abs(slope - left), tolerance=allowed,
            )  # fmt: skip
    return row


def _size(tensors: Sequence[Tensor]) -> float:
    return hypot(*(tensor.norm().item() for tensor in tensors))


def _terms(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    return torch.cat([(u.detach() * v.detach()).flatten() for u, v in zip(a, b, strict=False)])
