"""Not a number, an index that is held twice, an example that does not count."""

from collections.abc import Iterator

import torch
from torch import Tensor

from gradient_check.diagnosis.fault import Fault, as_double, with_graph
from gradient_check.diagnosis.terms import Graph
from gradient_check.report import Diagnosis


def nan(fault: Fault) -> Diagnosis | None:
    bad = ~fault.given.isfinite()
    if not bad.any():
        return None
    first = [int(i) for i in bad.nonzero()[0]]
    what = "NaN" if fault.given[tuple(first)].isnan() else "infinity"
    where = f"{int(bad.sum())} of {bad.numel()} elements are not finite, the first is {what} at {first}"
    for name, tensor in fault.tensors.items():
        if tensor.shape == bad.shape and not bad.all() and torch.equal(tensor == 0, bad):
            return Diagnosis("nan", f"{where}: exactly where {name} is 0")
    return Diagnosis("nan", where)


def repeated_indices(fault: Fault) -> Diagnosis | None:
    """Wrong where an index is held more than once, right where once; or one of its cotangents stands for their sum."""
    for key, ids in fault.evidence.arguments.items():
        if not isinstance(ids, Tensor) or ids.dtype not in (torch.int64, torch.int32) or not ids.numel():
            continue
        ids = ids.detach().cpu().long()
        for dim, size in enumerate(fault.wanted.shape):
            if not -size <= int(ids.min()) <= int(ids.max()) < size:
                continue
            for target, uses in _targets(ids % size, dim, fault.wanted):
                right_once = ~fault.wrong & fault.telling & (uses == 1)
                if fault.wrong.any() and right_once.any() and not (fault.wrong & (uses <= 1)).any():
                    which = sorted(set(fault.wrong.nonzero()[:, dim].tolist()))
                    listed = ", ".join(str(i) for i in which[:5]) + (", …" if len(which) > 5 else "")
                    text = f"wrong only where {key} holds an index more than once: at {listed} of dimension {dim}"
                    return Diagnosis("repeated indices", text)
                for which_one, value in _overwritten(fault, target):
                    if fault.explained_by(value):
                        text = f"where {key} holds an index more than once, only the {which_one} cotangent counts"
                        return Diagnosis("repeated indices", text)
    return None


def _targets(ids: Tensor, dim: int, like: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Where each index leads, as a row or as `gather` takes it along `dim`, and how often each element is named."""
    line = [1] * like.ndim
    line[dim] = like.shape[dim]
    yield ids, ids.flatten().bincount(minlength=like.shape[dim]).view(line).expand(like.shape)
    sizes = zip(ids.shape, like.shape, strict=False)
    if ids.ndim == like.ndim and all(a <= b or d == dim for d, (a, b) in enumerate(sizes)):
        target = torch.arange(like.numel()).view(like.shape).gather(dim, ids)
        yield target, target.flatten().bincount(minlength=like.numel()).view(like.shape)


def _overwritten(fault: Fault, target: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The gradient if of all examples with the same target only the last, or the first, counts."""
    graph, flat = fault.graph, target.flatten()
    dys = [as_double(dy) for dy in fault.evidence.cotangents] if graph is None else graph.cotangents
    if not dys or any(dy.shape[: target.ndim] != target.shape for dy in dys):
        return
    for words, order in (("last", range(len(flat))), ("first", range(len(flat) - 1, -1, -1))):
        kept = torch.zeros(len(flat))
        kept[list({int(flat[i]): i for i in order}.values())] = 1
        left = [dy * kept.view(*target.shape, *[1] * (dy.ndim - target.ndim)).to(dy) for dy in dys]
        if graph is not None:
            yield words, graph.gradient(cotangents=left)
            continue
        rows = left[0].flatten(0, target.ndim - 1)
        for like in (fault.wanted, fault.wanted.flatten()):
            if rows.shape[1:] == like.shape[1:] and flat.max() < len(like):
                yield words, torch.zeros_like(like).index_add_(0, flat, rows).view_as(fault.wanted)


@with_graph
def examples_left_out(fault: Fault, graph: Graph) -> Diagnosis | None:
    """As if some rows of the cotangent were not there."""
    for dim in range(graph.cotangents[0].ndim):
        size = graph.cotangents[0].shape[dim]
        if size < 2 or size > fault.passes or any(dy.ndim <= dim or dy.shape[dim] != size for dy in graph.cotangents):
            continue
        parts = [torch.zeros_like(fault.wanted)]
        for unit in torch.eye(size, dtype=torch.float64):
            ones = [unit.view(size, *[1] * (dy.ndim - dim - 1)).to(dy) for dy in graph.cotangents]
            dys = [dy * one for dy, one in zip(graph.cotangents, ones, strict=True)]
            parts.append(graph.gradient(cotangents=dys))
        upto = torch.stack(parts).cumsum(0)
        for words, start, stop in _parts_lost(size):
            if fault.explained_by(fault.wanted - (upto[stop] - upto[start])):
                return Diagnosis("rows", f"{words} of dimension {dim} of the cotangent left out")
    return None


def _parts_lost(size: int) -> Iterator[tuple[str, int, int]]:
    """One row, those from one on, those up to one."""
    for k in range(size):
        yield f"row {k}", k, k + 1
    for k in range(1, size - 1):
        yield f"all from row {k} on", k, size
        yield f"all up to row {k}", 0, k + 1
