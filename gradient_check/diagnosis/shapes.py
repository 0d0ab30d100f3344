"""Another shape, the dimensions in another order, sums over other dimensions, another argument's gradient."""

from itertools import permutations

from gradient_check.diagnosis.fault import (
    Fault,
    as_double,
    dims_words,
    distance,
    explains,
    ideal,
    norm,
    shape_words,
    subsets,
)
from gradient_check.report import Diagnosis


def swapped(fault: Fault) -> Diagnosis | None:
    """Another argument's gradient, which is not where it belongs."""
    for other, correct in fault.correct.items():
        there, right = fault.actual.get(other), as_double(correct)
        if other == fault.name or there is None or right.shape != fault.given.shape:
            continue
        misplaced = there.shape != right.shape or distance(as_double(there), right) > 1e-3 * norm(right)
        if misplaced and explains(right, fault.given, fault.wanted, fault.evidence.noise):
            return Diagnosis("swapped", f"this is the correct {other}, which has another")
    return None


def transposed(fault: Fault) -> Diagnosis | None:
    for order in permutations(range(fault.wanted.ndim)) if fault.wanted.ndim <= 4 else ():
        if list(order) != sorted(order) and fault.explained_by(fault.wanted.permute(order)):
            said = "" if len(order) == 2 else f" (its dimensions in the order {', '.join(map(str, order))})"
            return Diagnosis("transposed", f"this is the transpose of {ideal(fault)}{said}")
    return None


def shape(fault: Fault) -> Diagnosis:
    """A dimension kept, not summed, or lost; if nothing is known of the values, just both shapes."""
    given, wanted, noise = fault.given, fault.wanted, fault.evidence.noise
    both = f"{shape_words(given)}, not {shape_words(wanted)}"
    if given.numel() == wanted.numel() and explains(wanted.reshape(given.shape), given, wanted, noise):
        return Diagnosis("shape", f"the correct values in the shape {both}")
    for dims in subsets(given.ndim):
        for summed in (given.sum(dims), given.sum(dims, keepdim=True)):
            if summed.shape == wanted.shape and distance(summed, wanted) <= noise * norm(wanted):
                return Diagnosis("shape", f"its shape is {both}: it was not summed over {dims_words(dims)}")
    for dims in subsets(wanted.ndim):
        for summed in (wanted.sum(dims), wanted.sum(dims, keepdim=True)):
            if summed.shape == given.shape and explains(summed, given, wanted, noise):
                return Diagnosis("shape", f"its shape is {both}: it was also summed over {dims_words(dims)}")
    return Diagnosis("shape", f"its shape is {both}")
