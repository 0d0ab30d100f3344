"""Two named sets of tensors, compared so strictly that a wrong gradient cannot pass.

tolerances.py says how close is close enough. Shape, dtype and device must be equal, no name may be missing or
superfluous, and NaN and infinity never pass. A gradient that is expected to be zero everywhere shows nothing, and fails
unless that is allowed.
"""

from collections.abc import Mapping
from dataclasses import replace
from math import inf
from typing import Any

import torch
from torch import Tensor

from gradient_check.claims import Doubt, claimed
from gradient_check.modes import own_modes
from gradient_check.report import Report, Row
from gradient_check.tolerances import SAME
from gradient_check.verdict import judge


@own_modes()
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
    rows = []
    for name, tensor in wanted.items():
        doubt = Doubt(expected=tensor, condition=conditions.get(name, 1.0), summands=zeros.get(name))
        claims = claimed(name, labels.get(name, name), "", true.get(name, tensor), doubt, tensor.dtype, tensor.device)
        claims = replace(claims, blind="") if claims.trivial and allow_trivial else claims
        rows.append(judge(claims, actual.get(name)))
    for name in actual.keys() - wanted.keys():
        surplus = actual[name]
        shape = () if surplus is None else tuple(surplus.shape)
        rows.append(Row(name, labels.get(name, name), shape, False, "nothing to compare it with"))
    if not all(row.passed for row in rows):
        from gradient_check.diagnosis import Evidence, diagnosed

        evidence = Evidence(candidates=candidates or {})
        rows = [diagnosed(row, actual, {**wanted, **true}, evidence) for row in rows]
    return Report(tuple(rows))


def as_tensor(value: Any, what: str) -> Tensor:
    """A tensor or NumPy array as a tensor; ValueError says which is neither."""
    if isinstance(value, Tensor):
        tensor = value
    elif hasattr(value, "__array__"):
        try:
            tensor = torch.as_tensor(value, device="cpu")
        except TypeError as error:
            raise ValueError(f"{what} is an array of {value.dtype}, which torch does not have") from error
    else:
        raise ValueError(f"{what} is a {type(value).__name__}: give a tensor or a NumPy array")
    if tensor.is_complex() or (tensor.is_floating_point() and tensor.dtype not in SAME):
        raise ValueError(
            f"{what} is {tensor.dtype}: give one of {', '.join(str(dtype) for dtype in SAME)}, or integers"
        )
    return tensor


def assert_gradients(actual: Mapping[str, Any], expected: Mapping[str, Any], **options: Any) -> None:
    """`compare_gradients`, with an AssertionError that holds the report unless all rows passed."""
    __tracebackhide__ = True
    compare_gradients(actual, expected, **options).assert_passed()
