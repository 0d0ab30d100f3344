"""A function of every element alone, chunk by chunk: what is too large to be looked at as a whole."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf, isnan
from typing import Any

import torch
from torch import Tensor

from gradient_check.report import Report, Row, merged

CHUNK = 1 << 20  # elements


def by_chunks(names: Sequence[str], arguments: Sequence[Any], report_on: Callable[[list[Any], bool], Report]) -> Report:
    """The reports on all chunks as one, with a row for each comparison: that of the chunk where it fails or is worst.

    `report_on(arguments, first)` makes the report on one chunk.

    Raises ValueError for tensors that are neither of one shape nor of one element.
    """
    tensors = {name: value for name, value in zip(names, arguments, strict=True) if isinstance(value, Tensor)}
    largest = max(tensors, key=lambda name: tensors[name].numel())
    shape = tensors[largest].shape
    for name, tensor in tensors.items():
        if tensor.shape != shape and tensor.numel() != 1:
            said = f"{largest} is of shape {tuple(shape)} and {name} of {tuple(tensor.shape)}"
            raise ValueError(f"elementwise needs tensors of one shape, or of one element, but {said}")
    reports = []
    for start in range(0, max(shape.numel(), 1), CHUNK):
        fed = [
            v.flatten()[start : start + CHUNK] if isinstance(v, Tensor) and v.shape == shape and v.dim() else v
            for v in arguments
        ]
        report = report_on(fed, start == 0)
        cut = len(fed[names.index(largest)]) if shape else 0
        reports.append(replace(report, rows=tuple(_whole(row, shape, start, cut) for row in report.rows)))
    rows: dict[tuple[str, str, str], Row] = {}
    for row in merged(reports).rows:
        key = (row.name, row.oracle, row.case)
        rows[key] = _worse(rows[key], row) if key in rows else row
    count = len(reports)
    notes = (f"in {count} chunks of {CHUNK:,} elements at most",) if count > 1 else ()
    return Report(tuple(rows.values()), (*notes, *merged(reports).notes))


def _whole(row: Row, shape: torch.Size, start: int, cut: int) -> Row:
    """With the shape and the index of the whole tensor."""
    if row.shape != (cut,) or row.case:
        return row
    place = torch.unravel_index(torch.tensor(start + row.index[0], device="cpu"), shape) if row.index else ()
    index = [int(i) for i in place]
    reason = row.reason.replace(f"at {list(row.index)}", f"at {index}", 1)
    return replace(row, shape=tuple(shape), index=tuple(index), reason=reason)


def _worse(one: Row, other: Row) -> Row:
    kinks = one.kinks + other.kinks
    if not one.passed or not other.passed:
        return replace(one if not one.passed else other, kinks=kinks)
    errors = [inf if isnan(row.relative_error) else row.relative_error for row in (one, other)]
    return replace(one if errors[0] >= errors[1] else other, kinks=kinks)
