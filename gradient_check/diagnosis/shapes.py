"""Another shape, the dimensions in another order, sums over other dimensions, another argument's gradient."""

from collections.abc import Iterator
from contextlib import suppress
from itertools import permutations
from typing import Any

from gradient_check.diagnosis.fault import (
    Fault,
    as_double,
    dims_words,
    distance,
    explains,
    norm,
    shape_words,
    subsets,
    with_graph,
)
from gradient_check.diagnosis.terms import Change, Graph, kind
from gradient_check.report import Diagnosis


def swapped(fault: Fault) -> Diagnosis | None:
    """Another argument's gradient, which is not where it belongs."""
    for other, correct in fault.correct.items():
        there, right = fault.actual.get(other), as_double(correct)
        if other == fault.name or there is None or right.shape != fault.given.shape:
            continue
        misplaced = there.shape != right.shape or distance(as_double(there), right) > 1e-3 * norm(right)
        if misplaced and explains(right, fault.given, fault.wanted, fault.evidence.noise):
            return Diagnosis("swapped", f"this is the correct gradient of {other[1:]}, which has another")
    return None


def transposed(fault: Fault) -> Diagnosis | None:
    for order in permutations(range(fault.wanted.ndim)) if fault.wanted.ndim <= 4 else ():
        if list(order) != sorted(order) and fault.explained_by(fault.wanted.permute(order)):
            said = "" if len(order) == 2 else f" (its dimensions in the order {', '.join(map(str, order))})"
            return Diagnosis("transposed", f"this is the transpose of the correct gradient{said}")
    return None


@with_graph
def transposed_factor(fault: Fault, graph: Graph) -> Diagnosis | None:
    """A square matrix that backward multiplies by, or the cotangent, was transposed."""
    products = [edge for edge in graph.edges if kind(edge[0]) in PRODUCTS]
    for edge in products[: fault.passes]:
        for words, change in _turned(graph, *edge):
            with suppress(RuntimeError):  # not square
                if fault.explained_by(graph.gradient({edge: change})):
                    return Diagnosis("transposed", f"in the gradient of a matrix product {words} is transposed")
    return None


# the positions of the two matrices, and the attributes that hold them
PRODUCTS = {
    "Mm": (0, "_saved_self", "_saved_mat2"),
    "Bmm": (0, "_saved_self", "_saved_mat2"),
    "Addmm": (1, "_saved_mat1", "_saved_mat2"),
}


def _turned(graph: Graph, node: Any, position: int) -> Iterator[tuple[str, Change]]:
    """The gradient of one matrix of a product where the other, or the cotangent, is transposed and should not be."""
    first, left, right = PRODUCTS[kind(node)]
    if position in (first, first + 1):
        other = getattr(node, right if position == first else left)
        yield (
            graph.partner(node, position) or "the other matrix",
            lambda _, dy: dy @ other if position == first else other @ dy,
        )
        yield "the cotangent", lambda _, dy: dy.mT @ other.mT if position == first else other.mT @ dy.mT


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
