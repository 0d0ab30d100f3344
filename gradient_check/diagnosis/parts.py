"""Wrong in one part only, and there zero or a constant times the correct gradient; or the parts in another order."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import exp, lgamma, prod
from typing import Any

import torch
from torch import Tensor

from gradient_check.diagnosis.constants import factor, sign, zero
from gradient_check.diagnosis.fault import Fault, as_double
from gradient_check.diagnosis.shapes import transposed
from gradient_check.report import Diagnosis

LINES = 500  # no more are compared with each other
COMMON = 0.02  # a place that random elements take up more often shows nothing
Part = tuple[str, Any]  # its name, and what takes it out of a tensor


def reordered(fault: Fault) -> Diagnosis | None:
    """The correct rows, or columns, in another order."""
    for dim, size in enumerate(fault.wanted.shape):
        if not 3 <= size <= LINES or fault.wanted.isnan().any():
            continue
        given, wanted = (tensor.movedim(dim, 0).reshape(size, -1) for tensor in (fault.given, fault.wanted))
        nearest = torch.cdist(given, wanted, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
        moved = (nearest != torch.arange(size)).nonzero().flatten().tolist()
        if len(set(nearest.tolist())) == size and fault.explained_by(fault.wanted.index_select(dim, nearest)):
            text = f"the correct values in another order along dimension {dim}: index {moved[0]} has those of"
            return Diagnosis("rows", f"{text} index {int(nearest[moved[0]])}")
    return None


def in_part(fault: Fault) -> Diagnosis | None:
    """Only some rows, columns, every second one, or a block of them are wrong; or those where a tensor has one sign."""
    if not fault.wrong.any():
        return None
    for where, at in _parts(fault):
        part = replace(fault, given=fault.given[at], wanted=fault.wanted[at])
        if zero(part):
            return Diagnosis("rows", f"{where} this is zero; the rest is correct")
        for pattern in (sign, factor, transposed):
            if found := pattern(part):
                return Diagnosis(found.kind, f"{where} {found.text}; the rest is correct")
        for term in fault.terms:
            if part.explained_by(part.wanted - term.gradient[at]):
                return Diagnosis("term", f"{where} a term is missing: the path through {term.words}")
    indices, shape = _slab(fault), fault.wanted.shape
    # one line alone is often correct because nothing is added there: the last of a sum, the first of a mask
    but_one = any(1 < len(chosen) == size - 1 for chosen, size in zip(indices, shape, strict=False))
    if indices and not but_one and _chance([len(chosen) for chosen in indices], shape) <= COMMON:
        return Diagnosis("rows", f"wrong only {_where(indices, shape)}")
    return None


def _chance(block: Sequence[int], shape: Sequence[int]) -> float:
    """How probable it is that as many elements, drawn at random, form a block of these sizes."""
    n, wrong = prod(shape), prod(block)
    ways = lgamma(n + 1) - lgamma(wrong + 1) - lgamma(n - wrong + 1)
    return prod(size - length + 1 for length, size in zip(block, shape, strict=True)) / exp(min(ways, 700.0))


def _parts(fault: Fault) -> Iterator[Part]:
    if indices := _slab(fault):
        yield _where(indices, fault.wanted.shape), _block(indices)
    masks = {key: as_double(mask) for key, mask in fault.masks.items()}
    for key, value in {**masks, **fault.tensors}.items():
        for said, region in (("> 0", value > 0), ("< 0", value < 0), ("= 0", value == 0)):
            if region.shape == fault.wrong.shape and torch.equal(region & fault.telling, fault.wrong):
                yield f"where {key} {said}", region


def _slab(fault: Fault) -> list[list[int]]:
    """The indices, along each dimension, of the lines or else the smallest block that hold all wrong elements.

    They are wrong nearly everywhere, and along each dimension all, a run, or every second, third, …; or else none.
    """
    wrong, right, shape = fault.wrong.nonzero(), fault.telling & ~fault.wrong, fault.wanted.shape
    used = [column.unique().tolist() for column in wrong.T]
    for dims in (*((d,) for d in range(len(shape))), tuple(range(len(shape)))) if right.any() else ():
        indices = [used[d] if d in dims else list(range(size)) for d, size in enumerate(shape)]
        pairs = list(zip(indices, shape, strict=True))
        part = any(len(chosen) < size for chosen, size in pairs) and all(_regular(*pair) for pair in pairs)
        if part and len(wrong) >= 0.9 * int(fault.telling[_block(indices)].sum()):
            return indices
    return []


def _regular(chosen: list[int], size: int) -> bool:
    """A run, or every second, third, … of all."""
    step = chosen[1] - chosen[0] if len(chosen) > 2 else 1
    every = step == 1 or (chosen[0] < step and chosen[-1] + step >= size)
    return every and chosen == list(range(chosen[0], chosen[-1] + 1, step))


def _block(indices: list[list[int]]) -> tuple[Tensor, ...]:
    return torch.meshgrid(*map(torch.tensor, indices), indexing="ij")


def _where(indices: Sequence[Sequence[int]], shape: Sequence[int]) -> str:
    """Such as "from row 3 on", "up to row 3", "from row 3 to 5", "in row 3", "in every second row from 1 on"."""
    words = []
    for dim, (chosen, size) in enumerate(zip(indices, shape, strict=True)):
        name = {1: ("element",), 2: ("row", "column")}.get(len(shape), ("index",) * len(shape))[dim]
        of = f" of dimension {dim}" if len(shape) > 2 else ""
        first, last = chosen[0], chosen[-1]
        ordinal = {2: "second", 3: "third"}.get(step := (last - first) // max(1, len(chosen) - 1), f"{step}th")
        if len(chosen) == size:
            continue
        if len(chosen) == 1:
            words.append(f"in {name} {first}{of}")
        elif last - first >= len(chosen):
            words.append(f"in every {ordinal} {name} from {first} on{of}")
        elif last == size - 1:
            words.append(f"from {name} {first}{of} on")
        elif first == 0:
            words.append(f"up to {name} {last}{of}")
        else:
            words.append(f"from {name} {first} to {last}{of}")
    return " and ".join(words)
