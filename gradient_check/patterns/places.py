"""Wrong in some places only."""

from collections.abc import Iterator, Sequence
from contextlib import suppress

import torch
from torch import Tensor

from gradient_check.patterns.case import Case, with_graph
from gradient_check.report import Diagnosis
from gradient_check.terms import Graph


def nan(case: Case) -> Diagnosis | None:
    bad = ~case.given.isfinite()
    if not bad.any():
        return None
    first = [int(i) for i in bad.nonzero()[0]]
    what = "NaN" if case.given[tuple(first)].isnan() else "infinity"
    where = f"{int(bad.sum())} of {bad.numel()} elements are not finite, the first is {what} at {first}"
    for name, tensor in case.tensors.items():
        if tensor.shape == bad.shape and not bad.all() and torch.equal(tensor == 0, bad):
            return Diagnosis("nan", f"{where}: exactly where {name} is 0")
    return Diagnosis("nan", where)


def repeated_indices(case: Case) -> Diagnosis | None:
    """Wrong only in elements that an index names more than once."""
    right_used = ~case.wrong & (case.wanted != 0)
    for key, ids in case.evidence.arguments.items():
        if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            continue
        ids = ids.detach().cpu()
        for dim, size in enumerate(case.wanted.shape):
            if not ids.numel() or int(ids.min()) < -size or int(ids.max()) >= size:
                continue
            values, counts = (ids.flatten() % size).unique(return_counts=True)
            often = torch.zeros(size, dtype=torch.bool)
            often[values[counts > 1]] = True
            once = torch.zeros(size, dtype=torch.bool)
            once[values[counts == 1]] = True
            line = [1] * case.wanted.ndim
            line[dim] = size
            if (case.wrong & ~often.view(line)).any() or not (right_used & once.view(line)).any():
                continue
            which = sorted(set(case.wrong.nonzero()[:, dim].tolist()))
            listed = ", ".join(str(i) for i in which[:5]) + (", …" if len(which) > 5 else "")
            return Diagnosis(
                "repeated indices",
                f"wrong only where {key} holds an index more than once: at {listed} of dimension {dim}",
            )
        if ids.ndim == case.wanted.ndim:
            for dim in range(ids.ndim):
                with suppress(RuntimeError):
                    uses = torch.zeros(case.wanted.shape, dtype=torch.int64).scatter_add_(
                        dim, ids, torch.ones_like(ids)
                    )
                    if not (case.wrong & (uses <= 1)).any() and (right_used & (uses == 1)).any():
                        return Diagnosis("repeated indices", f"wrong only where {key} holds an index more than once")
    return None


@with_graph
def examples_left_out(case: Case, graph: Graph) -> Diagnosis | None:
    """As if some rows of the cotangent were not there."""
    for dim in range(graph.cotangents[0].ndim):
        size = graph.cotangents[0].shape[dim]
        if size < 2 or size > case.passes or any(dy.ndim <= dim or dy.shape[dim] != size for dy in graph.cotangents):
            continue
        parts = []
        for k in range(size):
            dys = [torch.zeros_like(dy) for dy in graph.cotangents]
            for dy, full in zip(dys, graph.cotangents, strict=True):
                dy.select(dim, k).copy_(full.select(dim, k))
            parts.append(graph.gradient(cotangents=dys))
        upto = torch.stack([torch.zeros_like(case.wanted), *parts]).cumsum(0)
        for words, start, stop in _parts_lost(size):
            if case.is_(case.wanted - (upto[stop] - upto[start])):
                return Diagnosis("rows", f"{words} of dimension {dim} of the cotangent left out")
    return None


def _parts_lost(size: int) -> Iterator[tuple[str, int, int]]:
    """One row, those from one on, those up to one."""
    for k in range(size):
        yield f"row {k}", k, k + 1
    for k in range(1, size - 1):
        yield f"all from row {k} on", k, size
        yield f"all up to row {k}", 0, k + 1


def rows(case: Case) -> Diagnosis | None:
    """Right up to a row, wrong from there on; or the other way round; or one row alone."""
    known = case.wrong | (case.wanted != 0) | (case.given != 0)
    for dim, size in enumerate(case.wanted.shape):
        others = tuple(d for d in range(case.wanted.ndim) if d != dim)
        wrong = case.wrong.any(others) if others else case.wrong
        informative = known.any(others) if others else known
        bad, good = wrong.nonzero().flatten().tolist(), (informative & ~wrong).nonzero().flatten().tolist()
        if size < 3 or not bad or not good or bad != list(range(bad[0], bad[-1] + 1)):
            continue
        if case.wrong.sum() < 0.9 * known.index_select(dim, torch.tensor(bad)).sum():
            continue
        if _permuted(case, dim, bad):
            return None
        names = [_line(dim, k, case.wanted.ndim) for k in range(size)]
        if len(bad) == 1:
            return Diagnosis("rows", f"only {names[bad[0]]} is wrong")
        if good[-1] < bad[0] and len(good) > 1:
            return Diagnosis("rows", f"right up to {names[bad[0] - 1]}, wrong from {names[bad[0]]} on")
        if good[0] > bad[-1] and len(good) > 1:
            return Diagnosis("rows", f"wrong up to {names[bad[-1]]}, right from {names[bad[-1] + 1]} on")
    return None


def _line(dim: int, k: int, ndim: int) -> str:
    if ndim > 2:
        return f"index {k} of dimension {dim}"
    return f"{('row', 'column')[dim] if ndim == 2 else 'element'} {k}"


def _permuted(case: Case, dim: int, bad: Sequence[int]) -> bool:
    """Whether the wrong rows are right ones in another order."""
    if len(bad) < 2 or len(bad) > 500:
        return False
    index = torch.tensor(bad)
    given, wanted = (
        t.index_select(dim, index).movedim(dim, 0).reshape(len(bad), -1) for t in (case.given, case.wanted)
    )
    near = torch.cdist(given, wanted, compute_mode="donot_use_mm_for_euclid_dist").min(1).values
    return bool((near <= 10 * case.evidence.noise * wanted.norm()).all())
