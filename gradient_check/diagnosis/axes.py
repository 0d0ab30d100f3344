"""Sums and means over other dimensions than forward has them."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

from torch import Tensor

from gradient_check.diagnosis.fault import Fault, dims_words, shape_words, subsets, with_graph
from gradient_check.diagnosis.terms import Graph, kind
from gradient_check.report import Diagnosis


@with_graph
def wrong_axis(fault: Fault, graph: Graph) -> Diagnosis | None:
    """Summed over other dimensions than the argument was broadcast over."""
    for full in _unreduced(fault, graph):
        right = _reduced_dims(full, fault.wanted)
        for dims in subsets(full.ndim):
            total = full.sum(dims)
            if total.numel() == 1:
                total = total.reshape(()).expand(fault.given.shape)
            if dims == right or total.squeeze().shape != fault.given.squeeze().shape:
                continue
            total = total.reshape(fault.given.shape)
            for words, value in (("summed", total), ("averaged", total * total.numel() / full.numel())):
                if fault.explained_by(value):
                    text = f"{words} over {dims_words(dims)} of the {shape_words(full)} gradient"
                    return Diagnosis("wrong axis", f"{text} instead of {dims_words(right)}")
    return None


def _unreduced(fault: Fault, graph: Graph) -> Iterator[Tensor]:
    """The gradients from before they were summed over the dimensions that the argument was broadcast over."""
    uses = [edge for edge in graph.edges if graph.leaf_below(*edge) == fault.argument and kind(edge[0]) in BROADCASTING]
    for edge in uses[: fault.passes]:
        found: list[Tensor] = []
        graph.gradient({edge: partial(_look, *edge, found)})
        if found[-1].numel() > fault.wanted.numel():
            yield found[-1].double().cpu()


def _look(node: Any, position: int, found: list[Tensor], d_input: Tensor, d_output: Tensor) -> Tensor:
    """Changes nothing, but remembers the gradient from before it is summed."""
    found.append(BROADCASTING[kind(node)](node, position, d_output))
    return d_input


@with_graph
def wrong_axis_inside(fault: Fault, graph: Graph) -> Diagnosis | None:
    """A sum or mean on the way, such as softmax's, is over other dimensions in backward than in forward."""
    passes = fault.passes
    for node, position in graph.edges:
        below = node.next_functions[position][0]
        if below is None or kind(node) not in BROADCASTING or kind(below) not in ("Sum", "Mean"):
            continue
        for dims in subsets(graph.cotangents[0].ndim):
            if (passes := passes - 1) < 0:
                return None
            found: list[Tensor] = []
            look, over = partial(_look, node, position, found), partial(_over, dims, kind(below), found)
            with suppress(RuntimeError, IndexError):  # there is no such dimension there
                if fault.explained_by(graph.gradient({(node, position): look, (below, 0): over})):
                    return Diagnosis("wrong axis", f"a {kind(below).lower()} on the way is over {dims_words(dims)}")
    return None


def _over(dims: tuple[int, ...], what: str, found: list[Tensor], d_input: Tensor, d_output: Tensor) -> Tensor:
    """The sum or mean over other dimensions of the remembered gradient, for every element of what was summed."""
    full = found[-1]
    total = full.mean(dims, keepdim=True) if what == "Mean" else full.sum(dims, keepdim=True)
    return total.expand_as(d_input)


def _reduced_dims(full: Tensor, like: Tensor) -> tuple[int, ...]:
    """The dimensions that broadcasting `like` to `full` added or stretched."""
    lead = full.ndim - like.ndim
    return tuple(d for d in range(full.ndim) if d < lead or like.shape[d - lead] != full.shape[d])


def _sum_of(node: Any, position: int, d_output: Tensor) -> Tensor:
    return d_output


def _difference_of(node: Any, position: int, d_output: Tensor) -> Tensor:
    return -d_output if position else d_output


def _product_of(node: Any, position: int, d_output: Tensor) -> Tensor:
    return d_output * (node._saved_self if position else node._saved_other)


def _quotient_of(node: Any, position: int, d_output: Tensor) -> Tensor:
    other = node._saved_other
    return -d_output * node._saved_self / other**2 if position else d_output / other


# the gradient of a broadcasting node's input before it is summed
BROADCASTING: dict[str, Callable[[Any, int, Tensor], Tensor]] = {
    "Add": _sum_of,
    "Addmm": _sum_of,
    "Sub": _difference_of,
    "Mul": _product_of,
    "Div": _quotient_of,
}
