"""Wrong in some places only: where an index is held twice, for some examples, in some rows; or rows out of order."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations, product
from math import exp, lgamma, prod
from typing import Any

import torch
from torch import Tensor

from gradient_check.diagnosis.factors import factor, sign, zero
from gradient_check.diagnosis.fault import Fault, as_double
from gradient_check.diagnosis.shapes import transposed
from gradient_check.report import Diagnosis

LINES = 500  # no more are compared with each other
COMMON = 0.02  # a place that random elements take up more often shows nothing


def nan(fault: Fault) -> Diagnosis | None:
    bad = (~fault.given.isfinite()).any(-1) if fault.paired else ~fault.given.isfinite()
    if not bad.any():
        return None
    first = [int(i) for i in bad.nonzero()[0]]
    what = "NaN" if fault.given[tuple(first)].isnan().any() else "infinity"
    where = f"{int(bad.sum())} of {bad.numel()} elements are not finite, the first is {what} at {first}"
    for name, tensor in fault.tensors.items():
        if tensor.shape == bad.shape and not bad.all() and torch.equal(tensor == 0, bad):
            return Diagnosis("nan", f"{where}: exactly where {name} is 0")
    return Diagnosis("nan", where)


def repeated_indices(fault: Fault) -> Diagnosis | None:
    """Wrong where an index is held more than once, right where once."""
    for key, ids in fault.evidence.arguments.items():
        if not isinstance(ids, Tensor) or ids.dtype not in (torch.int64, torch.int32) or not ids.numel():
            continue
        for dim, size in enumerate(fault.wanted.shape[: fault.wanted.ndim - fault.paired]):
            if not -size <= int(ids.min()) <= int(ids.max()) < size:
                continue
            for uses in _uses(ids.cpu().long() % size, dim, fault.wanted):
                right_once = ~fault.wrong & fault.telling & (uses == 1)
                if fault.wrong.any() and right_once.any() and not (fault.wrong & (uses <= 1)).any():
                    which = fault.wrong.nonzero()[:, dim].unique().tolist()
                    listed = ", ".join(map(str, which[:5])) + (", …" if len(which) > 5 else "")
                    text = f"wrong only where {key} holds an index more than once: at {listed} of dimension {dim}"
                    return Diagnosis("repeated indices", text)
            for dy in fault.evidence.cotangents if dim == 0 else ():
                last = torch.zeros_like(fault.wanted)
                if dy.shape == (*ids.shape, *last.shape[1:]):
                    last.index_copy_(0, ids.cpu().flatten() % size, as_double(dy).flatten(0, ids.ndim - 1))
                    text = f"where {key} holds an index more than once, only the last cotangent counts"
                    if fault.explained_by(last):
                        return Diagnosis("repeated indices", text)
    return None


def _uses(ids: Tensor, dim: int, like: Tensor) -> Iterator[Tensor]:
    """How often each element is named, if an index stands for a row or as `gather` takes it along `dim`."""
    line = [-1 if d == dim else 1 for d in range(like.ndim)]
    yield ids.flatten().bincount(minlength=like.shape[dim]).view(line).expand(like.shape)
    sizes = zip(ids.shape, like.shape, strict=False)
    if ids.ndim == like.ndim and all(a <= b or d == dim for d, (a, b) in enumerate(sizes)):
        yield torch.zeros_like(like).scatter_add(dim, ids, torch.ones_like(ids, dtype=like.dtype))


def examples_left_out(fault: Fault) -> Diagnosis | None:
    """As if a row of the cotangent, all from one on, or all up to one were not there."""
    graph = fault.graph
    if graph is None:
        return None
    pairs = not fault.evidence.complex.isdisjoint(fault.evidence.named_outputs)
    for dim in range(min(dy.ndim for dy in graph.cotangents) - pairs):
        sizes = {dy.shape[dim] for dy in graph.cotangents}
        size = sizes.pop()
        for k in (2**p for p in range(5, 17) if not sizes and 12 < fault.passes < size > 2**p):  # too many to try all
            dys = [torch.cat([dy.narrow(dim, 0, k), 0 * dy.narrow(dim, k, size - k)], dim) for dy in graph.cotangents]
            if fault.explained_by(graph.gradient(cotangents=dys)):
                return Diagnosis("rows", f"all from row {k:,} on of dimension {dim} of the cotangent left out")
        if sizes or not 2 <= size <= fault.passes:
            continue
        parts = [torch.zeros_like(fault.wanted)]
        for unit in torch.eye(size, device="cpu"):
            dys = [(dy.movedim(dim, -1) * unit.to(dy)).movedim(-1, dim) for dy in graph.cotangents]
            parts.append(graph.gradient(cotangents=dys))
        upto = torch.stack(parts).cumsum(0)
        for start, stop in combinations(range(size + 1), 2):
            alone = stop == start + 1
            lost = upto[stop] - upto[start]
            if (alone or (start == 0) != (stop == size)) and fault.explained_by(fault.wanted - lost):
                run = f"all from row {start} on" if start else f"all up to row {stop - 1}"
                which = f"row {start}" if alone else run
                return Diagnosis("rows", f"{which} of dimension {dim} of the cotangent left out")
    return None


def reordered(fault: Fault) -> Diagnosis | None:
    """The correct rows, or columns, in another order."""
    for dim, size in enumerate(fault.wanted.shape):
        if not 3 <= size <= LINES or fault.wanted.isnan().any():
            continue
        given, wanted = (tensor.movedim(dim, 0).reshape(size, -1) for tensor in (fault.given, fault.wanted))
        nearest = torch.cdist(given, wanted, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
        moved = (nearest != torch.arange(size, device=nearest.device)).nonzero().flatten().tolist()
        if len(set(nearest.tolist())) == size and fault.explained_by(fault.wanted.index_select(dim, nearest)):
            text = f"the correct values in another order along dimension {dim}: index {moved[0]} has those of"
            return Diagnosis("rows", f"{text} index {int(nearest[moved[0]])}")
    return None


def moved(fault: Fault) -> Diagnosis | None:
    """The correct values a few places further, whatever came in at the end."""
    if 2 * int(fault.wrong.sum()) <= int(fault.telling.sum()):
        return None  # values that are much the same, such as those of a mask, may also be wrong at its ends
    for dim, by in product(range(fault.wanted.ndim - fault.paired), (1, -1, 2, -2)):
        size = fault.wanted.shape[dim] - abs(by)
        if size >= 3:
            given, wanted = (tensor.narrow(dim, max(by, 0), size) for tensor in (fault.given, fault.wanted))
            if replace(fault, given=given, wanted=wanted).explained_by(fault.wanted.narrow(dim, max(-by, 0), size)):
                return Diagnosis("rows", f"the correct values, moved by {by} along dimension {dim}".replace("-", "−"))
    return None


def in_part(fault: Fault) -> Diagnosis | None:
    """Only some rows, columns, a block or elements are wrong: zero, a constant times the correct gradient, or else."""
    runs, shape, count = _slab(fault), fault.wanted.shape, int(fault.wrong.sum())
    places: list[tuple[str, Any]] = [(_where(runs, shape, fault.paired), _block(runs))] if runs else []
    if count >= 3 and (fault.telling & ~fault.wrong).any():
        places.append((f"in {count:,} of {shape.numel():,} {'parts' if fault.paired else 'elements'}", fault.wrong))
    for where, chosen in places:
        part = replace(fault, given=fault.given[chosen], wanted=fault.wanted[chosen])
        if zero(part):
            return Diagnosis("rows", f"{where} this is zero; the rest is correct")
        for pattern in (sign, factor, transposed):
            if found := pattern(part):
                return Diagnosis(found.kind, f"{where} {found.text}; the rest is correct")
        if not part.wanted.any() and (fault.wanted == 0).double().mean() ** count <= COMMON:
            return Diagnosis("mask ignored", f"{where} this is not zero, as it should be; the rest is correct")
    # one line alone is often correct because nothing is added there: the last of a sum, the first of a mask
    but_one = any(1 < len(run) == size - 1 for run, size in zip(runs, shape, strict=False))
    if not runs or but_one or _chance([len(run) for run in runs], shape) > COMMON:
        return None
    return Diagnosis("rows", f"wrong only {places[0][0]}")


def _chance(block: Sequence[int], shape: Sequence[int]) -> float:
    """How probable it is that as many elements, drawn at random, form a block of these sizes."""
    n, wrong = prod(shape), prod(block)
    ways = lgamma(n + 1) - lgamma(wrong + 1) - lgamma(n - wrong + 1)
    return prod(size - length + 1 for length, size in zip(block, shape, strict=True)) / exp(min(ways, 700.0))


def _slab(fault: Fault) -> list[range]:
    """Along each dimension, the run of lines, or else of a block, that holds all wrong elements and hardly another."""
    wrong, right, shape = fault.wrong.nonzero(), fault.telling & ~fault.wrong, fault.wanted.shape
    used = [column.unique().tolist() for column in wrong.T]
    for dims in (*((d,) for d in range(len(shape))), range(len(shape))) if len(wrong) and right.any() else ():
        runs = [range(used[d][0], used[d][-1] + 1) if d in dims else range(size) for d, size in enumerate(shape)]
        part = prod(map(len, runs)) < prod(shape) and all(len(runs[d]) == len(used[d]) for d in dims)
        if part and len(wrong) >= 0.9 * int(fault.telling[_block(runs)].sum()):
            return runs
    return []


def _block(runs: Sequence[range]) -> tuple[slice, ...]:
    return tuple(slice(run.start, run.stop) for run in runs)


def _where(runs: Sequence[range], shape: Sequence[int], paired: bool) -> str:
    """Such as "from row 3 on", "up to row 3", "from row 3 to 5", "in row 3"."""
    words = []
    ndim = len(shape) - paired
    names = [*{1: ("element",), 2: ("row", "column")}.get(ndim, ("index",) * ndim), ""]
    for dim, (run, size, name) in enumerate(zip(runs, shape, names, strict=False)):
        of = f" of dimension {dim}" if ndim > 2 else ""
        if dim == ndim and len(run) == 1:
            words.append(f"in the {('real', 'imaginary')[run[0]]} part")
        elif len(run) == 1 < size:
            words.append(f"in {name} {run[0]}{of}")
        elif run.start > 0 and run.stop == size:
            words.append(f"from {name} {run[0]}{of} on")
        elif len(run) < size:
            words.append(f"from {name} {run[0]} to {run[-1]}{of}" if run.start else f"up to {name} {run[-1]}{of}")
    return " and ".join(words)
