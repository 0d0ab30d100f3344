"""Something that backward has to multiply by was left out: the cotangent, a mask, a factor, a derivative."""

from collections.abc import Iterator

import torch
from torch import Tensor

from gradient_check.diagnosis.fault import ACCIDENT, Fault, as_double, distance, norm
from gradient_check.report import Diagnosis


def ones(fault: Fault) -> Diagnosis | None:
    if fault.graph is not None:
        values = [fault.graph.gradient(cotangents=[torch.ones_like(dy) for dy in fault.graph.cotangents])]
    else:  # each element has a cotangent of its own, or all the same
        dys = [as_double(dy) for dy in fault.evidence.cotangents]
        values = [fault.wanted / dy for dy in dys if len(dys) == 1 and dy.shape in (fault.wanted.shape, ())]
    if any(fault.explained_by(value) for value in values):
        return Diagnosis("ones", "this is the gradient for a cotangent of ones: the cotangent was ignored")
    return None


def mask_ignored(fault: Fault) -> Diagnosis | None:
    """A mask, an argument of zeros and one other value: times the mask, or with nothing masked, all is explained."""
    for key, mask in fault.masks.items():
        keep = as_double(mask)
        without = [torch.full_like(mask, value) for value in sorted({0, 1, *mask[mask != 0][:1].tolist()})]
        if any(_multiplied(fault, numbers) for numbers in (keep, (keep != 0).double(), (keep == 0).double())) or any(
            fault.explained_by(value) for value in fault.again(key, without)
        ):
            return Diagnosis("mask ignored", f"the mask {key} was ignored")
    return None


def missing_factor(fault: Fault) -> Diagnosis | None:
    """An argument, or a function of an output, by which the gradient was not multiplied."""
    unchanged = any(torch.equal(fault.given, as_double(dy)) for dy in fault.evidence.cotangents)
    for key, tensor in fault.tensors.items():
        own = key == fault.argument or key.startswith("the output")
        for words, factor, curved in _functions(key, tensor, own):
            if _multiplied(fault, factor):
                if own and (curved or unchanged):
                    return Diagnosis("derivative forgotten", f"the derivative {words} was not multiplied in")
                return Diagnosis("missing factor", f"{words} was not multiplied in")
    return None


def _functions(key: str, a: Tensor, own: bool) -> Iterator[tuple[str, Tensor, bool]]:
    """Factors made of a tensor, what they are called, and whether they can only be an activation's derivative."""
    y = "y" if key.startswith("the output") else key
    if own:
        yield f"1 − {y}²", 1 - a * a, True
        yield f"{y}(1 − {y})", a * (1 - a), True
        yield f"[{y} > 0]", (a > 0).double(), True
        yield f"2{y}", 2 * a, True
    yield y, a, False
    yield f"1/{y}", 1 / a, False
    yield f"{y}²", a * a, False
    yield f"√{y}", a.sqrt(), False
    yield f"exp({y})", a.exp(), False


def _multiplied(fault: Fault, factor: Tensor) -> bool:
    """Whether what was returned, times the factor, is correct."""
    noise = fault.evidence.noise
    for spread in _spread(factor, fault.given):
        if bool((spread == spread.flatten()[0]).all()):
            continue  # a constant: that has its own name
        value = fault.given * spread
        if not value.isfinite().all() or (spread == 0).sum() > 2 * (fault.given[spread == 0] != 0).sum():
            continue  # where the factor is 0, it made no difference
        remainder, size = distance(value, fault.wanted), norm(fault.wanted)
        if size and remainder <= noise * size and noise ** int((fault.wanted.nan_to_num() != 0).sum()) <= ACCIDENT:
            return distance(fault.given, fault.wanted) > 20 * remainder
    return False


def _spread(factor: Tensor, like: Tensor) -> Iterator[Tensor]:
    """A factor broadcast to a shape: from the last dimensions, as torch does, from the first, or along the second."""
    after = like.ndim - factor.ndim
    shapes = {tuple(factor.shape), (*factor.shape, *[1] * after), (1, *factor.shape, *[1] * (after - 1))}
    for shape in sorted(shapes, key=len):
        sizes = zip(reversed(shape), reversed(like.shape), strict=False)
        if len(shape) <= like.ndim and all(size in (1, wanted) for size, wanted in sizes):
            yield factor.reshape(shape).expand(like.shape)


def cotangent_unchanged(fault: Fault) -> Diagnosis | None:
    for dy in map(as_double, fault.evidence.cotangents):
        if fault.explained_by(dy):
            return Diagnosis("derivative forgotten", "this is the cotangent, unchanged")
        lead = dy.ndim - fault.given.ndim
        if lead > 0 and fault.explained_by(dy.sum(tuple(range(lead)))):
            text = f"this is the sum of the cotangent: what {fault.argument} is multiplied with is missing"
            return Diagnosis("missing factor", text)
    return None
