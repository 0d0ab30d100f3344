"""Another shape, the dimensions in another order, sums over other dimensions, another argument's gradient."""

from collections.abc import Iterator
from contextlib import suppress
from itertools import permutations

from torch import Tensor

from gradient_check.diagnosis.fault import Fault, as_double, dims_words, distance, ideal, norm, shape_words, subsets
from gradient_check.report import Diagnosis


def swapped(fault: Fault) -> Diagnosis | None:
    """Another argument's gradient, which is not where it belongs."""
    for other, correct in fault.correct.items():
        there, right = fault.actual.get(other), as_double(correct)
        if other == fault.name or there is None or right.shape != fault.given.shape:
            continue
        misplaced = there.shape != right.shape or distance(as_double(there), right) > 1e-3 * norm(right)
        if misplaced and fault.explained_by(right):
            return Diagnosis("swapped", f"this is the correct {other}, which has another")
    return None


def transposed(fault: Fault) -> Diagnosis | None:
    ndim = fault.wanted.ndim - fault.paired
    for order in permutations(range(ndim)) if ndim <= 4 else ():
        if list(order) != sorted(order) and fault.explained_by(fault.wanted.permute(*order, *[-1] * fault.paired)):
            said = "" if len(order) == 2 else f" (its dimensions in the order {', '.join(map(str, order))})"
            return Diagnosis("transposed", f"this is the transpose of {ideal(fault)}{said}")
    return None


def shape(fault: Fault) -> Diagnosis:
    """A dimension kept, not summed, or lost; if nothing is known of the values, just both shapes."""
    given, wanted = fault.given, fault.wanted
    both = f"{shape_words(given, fault.paired)}, not {shape_words(wanted, fault.paired)}"
    if given.numel() == wanted.numel() and fault.explained_by(wanted.reshape(given.shape)):
        return Diagnosis("shape", f"the correct values in the shape {both}")
    for keep in (False, True):
        for dims in subsets(given.ndim - fault.paired):
            total = given.sum(dims, keep)
            if total.shape == wanted.shape and distance(total, wanted) <= fault.evidence.noise * norm(wanted):
                return Diagnosis("shape", f"its shape is {both}: it was not summed over {dims_words(dims)}")
        for dims in subsets(wanted.ndim - fault.paired):
            if fault.explained_by(wanted.sum(dims, keep)):
                return Diagnosis("shape", f"its shape is {both}: it was also summed over {dims_words(dims)}")
    return Diagnosis("shape", f"its shape is {both}")


def wrong_axis(fault: Fault) -> Diagnosis | None:
    for full in _unreduced(fault):
        right = _reduced_dims(full, fault.wanted)
        for dims in subsets(full.ndim - fault.paired):
            total = full.sum(dims)
            if total.numel() == 1:
                total = total.reshape(()).expand(fault.given.shape)
            if dims == right or total.squeeze().shape != fault.given.squeeze().shape:
                continue
            total = total.reshape(fault.given.shape)
            for words, value in (("summed", total), ("averaged", total * total.numel() / full.numel())):
                if fault.explained_by(value):
                    text = f"{words} over {dims_words(dims)} of the {shape_words(full, fault.paired)} gradient"
                    return Diagnosis("wrong axis", f"{text} instead of {dims_words(right)}")
    return None


def _unreduced(fault: Fault) -> Iterator[Tensor]:
    """The gradients from before they were summed over the dimensions that the argument was broadcast over."""
    fulls, tensors = [], fault.tensors.values()
    for like in tensors if fault.graph is not None else ():
        with suppress(RuntimeError):  # it is not broadcast to this shape, or forward does not take it
            fulls += [fault.again(fault.argument, fault.evidence.arguments[fault.argument].expand(like.shape))]
    for dy in map(as_double, fault.evidence.cotangents):
        fulls += [dy, *(dy * tensor for tensor in tensors if tensor.shape == dy.shape)]
    for full in fulls:
        summed, wanted = full.sum(_reduced_dims(full, fault.wanted)).flatten(), fault.wanted.flatten()
        fits = full.numel() > wanted.numel() == summed.numel()
        if fits and distance(summed, wanted) <= fault.evidence.noise * norm(wanted):
            yield full


def _reduced_dims(full: Tensor, like: Tensor) -> tuple[int, ...]:
    """The dimensions that broadcasting `like` to `full` added or stretched."""
    lead = full.ndim - like.ndim
    return tuple(d for d in range(full.ndim) if d < lead or like.shape[d - lead] != full.shape[d])
