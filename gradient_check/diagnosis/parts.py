"""Wrong in one part only, and there zero or a constant times the correct gradient; or the parts in another order."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gradient_check.diagnosis.constants import factor, sign, zero
from gradient_check.diagnosis.fault import Fault, as_double
from gradient_check.diagnosis.shapes import transposed
from gradient_check.report import Diagnosis

LINES = 500  # no more are compared with each other
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
    indices = _slab(fault)
    if any(size - len(chosen) >= 2 for chosen, size in zip(indices, fault.wanted.shape, strict=False)):
        return Diagnosis("rows", f"wrong only {_where(indices, fault.wanted.shape)}")
    return None


def _parts(fault: Fault) -> Iterator[Part]:
    if indices := _slab(fault):
        yield _where(indices, fault.wanted.shape), _block(indices)
    masks = {key: as_double(mask) for key, mask in fault.masks.items()}
    for key, value in {**masks, **fault.tensors}.items():
        for said, region in (("> 0", value > 0), ("< 0", value < 0), ("= 0", value == 0)):
            if region.shape == fault.wrong.shape and torch.equal(region & fault.telling, fault.wrong):
                yield f"where {key} {said}", region


def _slab(fault: Fault) -> list[list[int]]:
    """The indices, along each dimension, of the smallest block that has all wrong elements; none if it is no part.

    It is one if it is wrong nearly everywhere, and along each dimension is all, a run, or every second, third, ….
    """
    wrong, right = fault.wrong.nonzero(), fault.telling & ~fault.wrong
    indices = [column.unique().tolist() for column in wrong.T]
    for chosen, size in zip(indices, fault.wanted.shape, strict=True):
        step = chosen[1] - chosen[0] if len(chosen) > 2 else 1
        every = step == 1 or (chosen[0] < step and chosen[-1] + step >= size)
        if not every or chosen != list(range(chosen[0], chosen[-1] + 1, step)):
            return []
    full = len(wrong) >= 0.9 * int(fault.telling[_block(indices)].sum()) if len(wrong) else False
    return indices if full and right.any() else []


def _block(indices: list[list[int]]) -> tuple[Tensor, ...]:
    return torch.meshgrid(*map(torch.tensor, indices), indexing="ij")


def _where(indices: Sequence[Sequence[int]], shape: Sequence[int]) -> str:
    """Such as "from row 3 on", "up to row 3", "from row 3 to 5", "in row 3", "in every second row from 1 on"."""
    words = []
    for dim, (chosen, size) in enumerate(zip(indices, shape, strict=True)):
        name, of = ("index", f" of dimension {dim}") if len(shape) > 2 else (("row", "column")[dim], "")
        name = "element" if len(shape) == 1 else name
        first, last = chosen[0], chosen[-1]
        if len(chosen) == size:
            continue
        if len(chosen) == 1:
            words.append(f"in {name} {first}{of}")
        elif last - first >= len(chosen):
            words.append(f"in every {_ordinal(chosen[1] - first)} {name} from {first} on{of}")
        elif last == size - 1:
            words.append(f"from {name} {first}{of} on")
        elif first == 0:
            words.append(f"up to {name} {last}{of}")
        else:
            words.append(f"from {name} {first} to {last}{of}")
    return " and ".join(words)


def _ordinal(n: int) -> str:
    return {2: "second", 3: "third"}.get(n, f"{n}th")
