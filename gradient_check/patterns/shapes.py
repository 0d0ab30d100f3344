"""Another shape, the dimensions in another order, sums over other dimensions, another argument's gradient."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import combinations, permutations
from typing import Any

from torch import Tensor

from gradient_check.patterns.case import Case, dims_words, distance, plain, same, shape_words, subsets, with_graph
from gradient_check.report import Diagnosis
from gradient_check.terms import Change, Graph, kind


def swapped(case: Case) -> Diagnosis | None:
    """Another argument's gradient, which is not where it belongs."""
    for other, right in case.expected.items():
        there = case.actual.get(other)
        if other == case.name or there is None or right.shape != case.given.shape:
            continue
        misplaced = there.shape != right.shape or distance(plain(there), plain(right)) > 1e-3 * right.norm()
        if misplaced and same(case.given, plain(right), case.wanted, case.evidence.noise):
            return Diagnosis("swapped", f"it is the right value of {other}, which has another")
    return None


def transposed_shape(case: Case) -> Diagnosis | None:
    for order in permutations(range(case.wanted.ndim)) if case.wanted.ndim <= 4 else ():
        if same(case.given, case.wanted.permute(order), case.wanted, case.evidence.noise):
            return Diagnosis("transposed", f"it is the transposed of the right value{_order(order)}")
    return None


def transposed(case: Case) -> Diagnosis | None:
    for i, j in combinations(range(case.wanted.ndim), 2):
        if case.wanted.shape[i] == case.wanted.shape[j] and case.is_(case.wanted.transpose(i, j)):
            where = "" if case.wanted.ndim == 2 else f" in dimensions {i} and {j}"
            return Diagnosis("transposed", f"it is the transposed of the right value{where}")
    return None


def _order(order: Sequence[int]) -> str:
    return "" if len(order) == 2 else f" (its dimensions in the order {', '.join(map(str, order))})"


@with_graph
def transposed_factor(case: Case, graph: Graph) -> Diagnosis | None:
    """A square matrix that backward multiplies by, or the cotangent, was transposed."""
    for key, value in case.evidence.arguments.items():
        if isinstance(value, Tensor) and key != case.argument and value.is_floating_point() and _is_square(value):
            with suppress(Exception):  # a forward may refuse it
                if case.is_(case.again(**{key: value.mT.contiguous()})):
                    return Diagnosis("transposed", f"it is the gradient for the transposed of {key}")
    products = [edge for edge in graph.edges if kind(edge[0]) in PRODUCTS]
    for edge in products[: case.passes]:
        for words, change in _turned(graph, *edge):
            with suppress(RuntimeError):  # not square
                if case.is_(graph.gradient({edge: change})):
                    return Diagnosis("transposed", f"{words} is the wrong way round in a matrix product's gradient")
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
    if position == first:
        other = getattr(node, right)
        yield graph.partner(node, position) or "the other matrix", lambda _, dy: dy @ other
        yield "the cotangent", lambda _, dy: dy.mT @ other.mT
    elif position == first + 1:
        other = getattr(node, left)
        yield graph.partner(node, position) or "the other matrix", lambda _, dy: other @ dy
        yield "the cotangent", lambda _, dy: other.mT @ dy.mT


def _is_square(tensor: Tensor) -> bool:
    return tensor.ndim >= 2 and tensor.shape[-1] == tensor.shape[-2]


def shape(case: Case) -> Diagnosis:
    """A dimension kept, not summed, or lost; if nothing is known of the values, just both shapes."""
    given, wanted, noise = case.given, case.wanted, case.evidence.noise
    both = f"{shape_words(given)}, not {shape_words(wanted)}"
    if given.numel() == wanted.numel() and same(given, wanted.reshape(given.shape), wanted, noise):
        return Diagnosis("shape", f"the right values in the shape {both}")
    for dims in subsets(given.ndim):
        for summed in (given.sum(dims), given.sum(dims, keepdim=True)):
            if summed.shape == wanted.shape and distance(summed, wanted) <= noise * wanted.norm():
                return Diagnosis("shape", f"its shape is {both}: it was not summed over {dims_words(dims)}")
    for dims in subsets(wanted.ndim):
        for summed in (wanted.sum(dims), wanted.sum(dims, keepdim=True)):
            if summed.shape == given.shape and same(given, summed, wanted, noise):
                return Diagnosis("shape", f"its shape is {both}: it was summed over {dims_words(dims)}, too")
    return Diagnosis("shape", f"its shape is {both}")
