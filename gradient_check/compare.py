"""Two named sets of tensors, compared so strictly that a wrong gradient cannot pass.

How close is close enough follows from the number format, never from what happens to pass:

- float64. Two right ways to compute a gradient differ by rounding only, some 1e-15 of its norm where it is
  well conditioned; `FLOAT64_TOLERANCE`, 1e-12, is the limit. Where a gradient is a small difference of large numbers
  (p − y of a network that is sure and right), rounding is larger by the ratio of the two, `condition`; once that
  exceeds 70 the limit, 64 units of rounding times `condition`, is wider than 1e-12.
- Lower precision. The truth is the float64 result on the same inputs, and the error allowed is `MULTIPLE`, 4, times
  the error that the expected value has itself, plus `FLOOR`, 16, units of rounding (times `condition`), because an
  error can be small by luck.

Both are judged twice: ‖difference‖ against ‖expected‖, and the largest element's difference against the root mean
square, with a limit 16 times as wide, or one wrong element in a million would hide. Shape, dtype and device must be
equal. NaN and infinity never pass. A gradient that is zero in exact arithmetic (a bias before batch norm) is no more
than the rounding of its summands: declare it in `zeros` with their size, and it is judged against that.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

FLOAT64_TOLERANCE = 1e-12
MULTIPLE = 4
FLOOR = 16
ELEMENT = 16


@dataclass(frozen=True)
class Row:
    """The verdict on one tensor; errors are relative to the norm, the largest element's to the root mean square."""

    name: str
    label: str
    shape: tuple[int, ...]
    passed: bool
    reason: str  # empty when passed
    relative_error: float = inf
    element_error: float = inf
    tolerance: float = 0.0  # what relative_error may be


@dataclass(frozen=True)
class Report:
    """One row per tensor, in the order in which they were expected."""

    rows: tuple[Row, ...]

    @property
    def passed(self) -> bool:
        return all(row.passed for row in self.rows)

    @property
    def failures(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if not row.passed)

    @property
    def max_relative_error(self) -> float:
        return max((row.relative_error for row in self.rows), default=0.0)

    def __str__(self) -> str:
        """A table of all rows; a failed one says why on the next line."""
        width = max((len(row.label) for row in self.rows), default=0)
        lines = []
        for row in self.rows:
            verdict = "ok" if row.passed else "WRONG"
            lines.append(
                f"{row.label:<{width}}  {row.shape!s:<12}  {row.relative_error:9.2e} of {row.tolerance:8.1e}  {verdict}"
            )
            if row.reason:
                lines.append(f"    {row.reason}")
        return "\n".join(lines)

    def assert_passed(self) -> None:
        """Raise AssertionError, with the report, unless every row passed."""
        if not self.passed:
            raise AssertionError(f"\n{self}")


def compare_gradients(
    actual: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    *,
    truth: Mapping[str, Tensor] | None = None,
    labels: Mapping[str, str] | None = None,
    condition: float | Mapping[str, float] = 1.0,
    zeros: Mapping[str, float] | None = None,
) -> Report:
    """Compare `actual` with `expected`, tensor by tensor; a missing or superfluous name fails too.

    `truth` holds the same tensors in float64 and is required for every dtype but float64 (ValueError). `labels` says
    what the report calls a tensor. `condition` (at least 1; one for all or by name) is the size of the summands over
    the size of the result where that is known to be large. `zeros` maps names to the size (the norm) of the summands
    that cancel.
    """
    labels, zeros = labels or {}, zeros or {}
    conditions = condition if isinstance(condition, Mapping) else dict.fromkeys(expected, condition)
    rows = []
    for name, tensor in expected.items():
        label = labels.get(name, name)
        if actual.get(name) is None:
            rows.append(Row(name, label, tuple(tensor.shape), False, "no gradient was returned"))
            continue
        if tensor.dtype != torch.float64 and (truth is None or name not in truth):
            raise ValueError(f"{name} is {tensor.dtype}: give `truth`, the same gradient computed in float64")
        true = tensor if truth is None or name not in truth else truth[name]
        rows.append(_judge(name, label, actual[name], tensor, true, conditions.get(name, 1.0), zeros.get(name)))
    for name in actual.keys() - expected.keys():
        rows.append(Row(name, labels.get(name, name), tuple(actual[name].shape), False, "nothing to compare it with"))
    return Report(tuple(rows))


def _judge(
    name: str, label: str, actual: Tensor, expected: Tensor, truth: Tensor, condition: float, summands: float | None
) -> Row:
    shape = tuple(expected.shape)
    for what in ("shape", "dtype", "device"):
        got, wanted = getattr(actual, what), getattr(expected, what)
        if got != wanted:
            return Row(name, label, shape, False, f"its {what} is {got}, not {wanted}")
    if expected.numel() == 0:
        return Row(name, label, shape, True, "", 0.0, 0.0)

    epsilon = torch.finfo(expected.dtype).eps
    a, e, t = (tensor.detach().cpu().double() for tensor in (actual, expected, truth))
    difference = a - t
    norm = t.norm().item() if summands is None else summands
    rms = norm / t.numel() ** 0.5
    relative_error = _ratio(difference.norm().item(), norm)
    element_error = _ratio(difference.abs().max().item(), rms)
    if expected.dtype == torch.float64:
        tolerance = max(FLOAT64_TOLERANCE, 4 * FLOOR * epsilon * condition)
        element_tolerance = ELEMENT * tolerance
    else:
        floor = FLOOR * epsilon * condition
        tolerance = floor + MULTIPLE * _ratio((e - t).norm().item(), norm)
        element_tolerance = ELEMENT * floor + MULTIPLE * _ratio((e - t).abs().max().item(), rms)
    if relative_error <= tolerance and element_error <= element_tolerance:  # False for NaN
        return Row(name, label, shape, True, "", relative_error, element_error, tolerance)

    flat_index = difference.abs().nan_to_num(inf, inf).argmax()
    index = [int(i) for i in torch.unravel_index(flat_index, difference.shape)]
    worst_actual, worst_expected = a.flatten()[flat_index].item(), t.flatten()[flat_index].item()
    reason = (
        f"at {index} it is {worst_actual:.9g}, expected {worst_expected:.9g}; off by {relative_error:.2e} of the norm "
        f"(allowed {tolerance:.1e}), here by {element_error:.2e} of the root mean square ({element_tolerance:.1e})"
    )
    return Row(name, label, shape, False, reason, relative_error, element_error, tolerance)


def _ratio(error: float, size: float) -> float:
    """error / size; where both are zero there is no error."""
    if error == 0:
        return 0.0
    return error / size if size > 0 else inf
