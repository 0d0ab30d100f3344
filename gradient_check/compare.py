"""Two named sets of tensors, compared so strictly that a wrong gradient cannot pass.

tolerances.py says how close is close enough. Shape, dtype and device must be equal, no name may be missing or
superfluous, and NaN and infinity never pass. A gradient that is expected to be zero everywhere shows nothing, and fails
unless that is allowed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import floor, inf, log2, sqrt
from typing import Any

import torch
from torch import Tensor

from gradient_check.diagnosis import Evidence, diagnose
from gradient_check.report import Diagnosis, Report, Row
from gradient_check.tolerances import (
    SAME,
    VISIBLE,
    Tolerance,
    floor_of,
    magnified,
    ratio,
    tolerance,
    tolerance_beside,
    tolerance_of_sums,
)


def compare_gradients(
    actual: Mapping[str, Any],
    expected: Mapping[str, Any],
    *,
    truth: Mapping[str, Any] | None = None,
    labels: Mapping[str, str] | None = None,
    condition: float | Mapping[str, float] = 1.0,
    zeros: Mapping[str, float] | None = None,
    allow_trivial: bool = False,
    candidates: Mapping[str, Tensor] | None = None,
) -> Report:
    """Compare `actual` with `expected`, tensor by tensor: dictionaries or `state_dict`s of tensors or NumPy arrays.

    `truth` holds the same tensors in float64 and is required for lower precision. `labels` says what the report calls a
    tensor. `condition` (at least 1; one for all or by name) is the size of the summands over the size of the result
    where that is known to be large. `zeros` maps the names of gradients that are zero in exact arithmetic to the size
    (the norm) of the summands that cancel. With `allow_trivial` an expected value that is zero everywhere may pass.
    `candidates` are tensors that the diagnosis tries as a term that is missing. Integers are compared exactly.

    Raises ValueError for a value that is no tensor, nothing to compare, an unsupported dtype, a lower precision without
    `truth`, or a truth of another shape.
    """
    for what, given in (("actual", actual), ("expected", expected), ("truth", truth), ("zeros", zeros)):
        if given is not None and not isinstance(given, Mapping):
            raise ValueError(f"{what} is a {type(given).__name__}: give a dictionary by name")
    for value in condition.values() if isinstance(condition, Mapping) else (condition,):
        if not (isinstance(value, int | float) and 1 <= value < inf):
            raise ValueError(f"condition is {value!r}: give a finite number from 1")
    labels, zeros = labels or {}, zeros or {}
    actual = {name: None if value is None else as_tensor(value, f"actual {name}") for name, value in actual.items()}
    wanted = {name: as_tensor(value, f"expected {name}") for name, value in expected.items()}
    if not (actual or wanted):
        raise ValueError("there is nothing to compare: give at least one tensor")
    true = {name: as_tensor(value, f"the truth of {name}") for name, value in (truth or {}).items()}
    conditions = condition if isinstance(condition, Mapping) else dict.fromkeys(wanted, condition)
    for name, tensor in wanted.items():
        if name in true and true[name].shape != tensor.shape:
            shapes = f"{tuple(true[name].shape)}, and what is expected of shape {tuple(tensor.shape)}"
            raise ValueError(f"the truth of {name} is of shape {shapes}: they must be equal")
        if tensor.is_floating_point() and tensor.dtype != torch.float64 and name not in true:
            raise ValueError(f"{name} is {tensor.dtype}: give `truth`, the same gradient computed in float64")
    judgements = {
        name: Judgement(
            expected=tensor,
            truth=true.get(name, tensor),
            label=labels.get(name, name),
            condition=conditions.get(name, 1.0),
            summands=zeros.get(name),
            allow_trivial=allow_trivial,
        )
        for name, tensor in wanted.items()
    }
    return judge_all(actual, judgements, Evidence(candidates=candidates or {}), labels)


@dataclass(frozen=True)
class Judgement:
    """What one tensor is held against."""

    expected: Tensor | None  # in the dtype on trial; None where no oracle has that dtype
    truth: Tensor  # in float64
    label: str
    dtype: torch.dtype | None = None  # on trial; that of `expected` unless given
    device: torch.device | None = None
    condition: float = 1.0
    summands: float | None = None  # the size that a gradient which is exactly zero is judged by
    moved: Tensor | None = None  # how far rounding in the inputs moves the truth, element by element
    errors: Tensor | None = None  # how far the oracle itself may be off in that dtype, element by element
    known: int = 1  # how many elements tell how far off, in several draws each
    floor: float = 0.0  # absolute, of an element: the rounding of a gradient of ordinary size
    terms: int = 1  # how many may have been added up
    allow_trivial: bool = False
    capped: bool = True  # a tolerance that would hide what must be visible is a failure
    oracle: str = ""

    @property
    def form(self) -> Tensor:
        """What has the dtype (unless that is given) and the device (unless that is) on trial."""
        return self.truth if self.expected is None else self.expected

    @property
    def on_trial(self) -> torch.dtype:
        return self.dtype or self.form.dtype


def judge_all(
    actual: Mapping[str, Tensor | None],
    judgements: Mapping[str, Judgement],
    evidence: Evidence,
    labels: Mapping[str, str] | None = None,
) -> Report:
    """A row per expected tensor, with a diagnosis where it is wrong, and one per superfluous tensor."""
    rows = []
    for name, judgement in judgements.items():
        row = judge(name, actual.get(name), judgement)
        if not row.passed and row.diagnosis is None and _differs(row, actual.get(name)):
            truths = {other: j.truth for other, j in judgements.items()}
            noise = SAME.get(judgement.on_trial, SAME[torch.float64])
            row = replace(row, diagnosis=diagnose(name, actual, truths, replace(evidence, noise=noise)))
        rows.append(row)
    for name in actual.keys() - judgements.keys():
        tensor, label = actual[name], (labels or {}).get(name, name)
        shape = () if tensor is None else tuple(tensor.shape)
        rows.append(Row(name, label, shape, False, "nothing to compare it with"))
    return Report(tuple(rows))


def _differs(row: Row, actual: Tensor | None) -> bool:
    """Whether it failed by its values or shape, which a diagnosis can explain."""
    return actual is not None and actual.device.type != "meta" and not row.agrees


def judge(name: str, actual: Tensor | None, against: Judgement) -> Row:
    """The verdict on one tensor."""
    shape, label, oracle = tuple(against.truth.shape), against.label, against.oracle
    blank = Row(name, label, shape, False, oracle=oracle)
    if actual is None:
        missing = Diagnosis("missing", "backward returned nothing for it")
        return replace(blank, reason="no gradient was returned", diagnosis=missing)
    model, dtype = against.form, against.on_trial
    for what, got, wanted in (
        ("shape", tuple(actual.shape), shape),
        ("dtype", actual.dtype, dtype),
        ("device", actual.device, against.device or model.device),
    ):
        if got != wanted:
            reason = f"its {what} is {got}, not {wanted}"
            known = Diagnosis("dtype", f"computed or returned in {got}") if what == "dtype" else None
            return replace(blank, reason=reason, diagnosis=known)
    if actual.numel() == 0:
        return replace(blank, passed=True, relative_error=0.0, element_error=0.0, absolute_error=0.0, ulps=0.0)
    if not dtype.is_floating_point:
        return _exactly(blank, actual, model)

    a, t = actual.detach().cpu().double(), against.truth.detach().cpu().double()
    size = t.norm().item() if against.summands is None else against.summands
    if size == 0:  # only as it happens: rounding may be magnified by 1/√ε before the derivative itself is lost
        against = replace(against, floor=against.floor / sqrt(torch.finfo(dtype).eps))
        size = against.floor * sqrt(t.numel())
    rms = size / sqrt(t.numel())
    limit = _limit(against, dtype, t, size)
    difference = (a - t).abs()
    largest = difference.max().item()
    row = replace(
        blank,
        relative_error=ratio(difference.norm().item(), size),
        element_error=ratio(largest, rms),
        absolute_error=largest,
        tolerance=limit.norm,
        element_tolerance=limit.element,
        origin=limit.origin,
    )
    row = _with_worst(row, a, t, difference, dtype)
    if not (row.relative_error <= limit.norm and row.element_error <= limit.element):  # NaN is wrong
        return replace(row, reason=_difference(row))
    if size == 0 and not against.allow_trivial:
        reason = "nothing is shown: it should be zero everywhere; choose another example, or declare it in `zeros`"
        return replace(row, reason=reason)
    if against.capped and against.condition == 1 and against.summands is None:
        visible = VISIBLE.get(dtype, inf)
        if limit.element > visible:
            reason = (
                f"the example is too badly conditioned to judge by: rounding alone may be {limit.element:.1e} of the "
                f"root mean square, and an error of {visible:g} must be seen; choose another example, or declare the "
                f"gradient in `zeros` if it is zero in exact arithmetic"
            )
            return replace(row, reason=reason)
    return replace(row, passed=True)


def as_tensor(value: Any, what: str) -> Tensor:
    """A tensor or NumPy array as a tensor; ValueError says which is neither."""
    if isinstance(value, Tensor):
        tensor = value
    elif hasattr(value, "__array__"):
        try:
            tensor = torch.as_tensor(value)
        except TypeError as error:
            raise ValueError(f"{what} is an array of {value.dtype}, which torch does not have") from error
    else:
        raise ValueError(f"{what} is a {type(value).__name__}: give a tensor or a NumPy array")
    if tensor.is_complex() or (tensor.is_floating_point() and tensor.dtype not in SAME):
        raise ValueError(
            f"{what} is {tensor.dtype}: give one of {', '.join(str(dtype) for dtype in SAME)}, or integers"
        )
    return tensor


def _limit(against: Judgement, dtype: torch.dtype, truth: Tensor, size: float) -> Tolerance:
    if dtype == torch.float64:
        limit = tolerance(dtype, against.condition)
    elif against.expected is None:
        limit = tolerance_of_sums(dtype, against.terms)
    else:
        own = (against.expected.detach().cpu().double() - truth).abs()
        if against.errors is not None:
            own = torch.maximum(own, against.errors.cpu())
        limit = tolerance_beside(dtype, own, size, against.condition, against.known)
    rms = size / sqrt(truth.numel())
    if against.moved is not None:
        often = magnified(dtype, against.known)
        limit = limit.wider(
            ratio(often * against.moved.norm().item(), size),
            ratio(often * against.moved.abs().max().item(), rms),
            f"{max(1.0, floor_of(dtype, against.known)):.2g} × what one unit of rounding in the inputs does to it",
        )
    if against.floor:
        limit = limit.wider(
            ratio(against.floor * sqrt(truth.numel()), size),
            ratio(against.floor, rms),
            "the rounding of a gradient of ordinary size",
        )
    return limit


def _with_worst(row: Row, a: Tensor, t: Tensor, difference: Tensor, dtype: torch.dtype) -> Row:
    """Where the difference is largest, both values there, and how many units in the last place they are apart."""
    worst = rest = int(difference.argmax())  # the first NaN, if there is one
    index: tuple[int, ...] = ()
    for size in reversed(a.shape):
        rest, i = divmod(rest, size)
        index = (i, *index)
    actual, expected = a.flatten()[worst].item(), t.flatten()[worst].item()
    format = torch.finfo(dtype)
    exponent = floor(log2(max(abs(expected), format.tiny))) if abs(expected) < inf else 0
    ulps = abs(actual - expected) / (format.eps * 2.0**exponent)
    return replace(row, index=index, actual=actual, expected=expected, ulps=ulps)


def _difference(row: Row) -> str:
    where = f"at {list(row.index)} " if row.index else ""
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


def assert_gradients(actual: Mapping[str, Any], expected: Mapping[str, Any], **options: Any) -> None:
    """`compare_gradients`, with an AssertionError that holds the report unless all rows passed."""
    __tracebackhide__ = True
    compare_gradients(actual, expected, **options).assert_passed()
