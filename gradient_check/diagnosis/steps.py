"""One step of backward's way was done wrong: left out, with a matrix transposed, or summed over other dimensions."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from itertools import chain, islice
from typing import Any

from torch import Tensor

from gradient_check.diagnosis.fault import Fault, as_double, dims_words, is_mask, subsets, with_graph
from gradient_check.diagnosis.terms import VIEWS, Change, Edge, Graph, kind
from gradient_check.report import Diagnosis

Hypothesis = tuple[Diagnosis, Mapping[Edge, Change]]


@with_graph
def wrong_step(fault: Fault, graph: Graph) -> Diagnosis | None:
    """The gradient is what autograd's graph gives with another gradient at one of its steps."""
    kinds = _unmasked(fault, graph), _left_out(fault, graph), _turned(graph), _over_other_dims(graph)
    for diagnosis, changes in chain.from_iterable(islice(hypotheses, fault.passes) for hypotheses in kinds):
        with suppress(RuntimeError, IndexError):  # where the shapes do not fit, it was something else
            if fault.explained_by(graph.gradient(changes)):
                return diagnosis
    return None


def _scaled(factor: float, d_input: Tensor, d_output: Tensor) -> Tensor:
    return factor * d_output.sum_to_size(d_input.shape)


def _unmasked(fault: Fault, graph: Graph) -> Iterator[Hypothesis]:
    """A masking operation as if nothing were masked."""
    for node, position in graph.edges:
        attribute = {"Mul": "_saved_self" if position else "_saved_other", "Where": "_saved_condition"}
        mask = getattr(node, attribute.get(kind(node), "_saved_mask"), None)
        if not isinstance(mask, Tensor) or not is_mask(mask):
            continue
        numbers = as_double(mask).flatten()
        named = [key for key, value in fault.others.items() if (value.cpu().flatten() != 0).equal(numbers != 0)]
        # not an argument, it is a mask if it is the same for all examples, and else may be part of an activation
        if named or kind(node) == "MaskedFill" or mask.ndim < graph.cotangents[0].ndim:
            text = " ".join(["the mask", *named[:1], "was ignored"])
            for value in {1.0, numbers[numbers != 0][0].item()}:
                yield Diagnosis("mask ignored", text), {(node, position): partial(_scaled, value)}


def _left_out(fault: Fault, graph: Graph) -> Iterator[Hypothesis]:
    """An operation's derivative, or a product's other factor."""
    curved = [(n, i) for n, i in graph.edges if kind(n) not in LINEAR and _inputs(n) == 1]
    products = [(n, i) for n, i in graph.edges if kind(n) == "Mul" or (kind(n) == "Div" and i == 0)]
    for edges in (*graph.groups(curved, fault.passes), *graph.groups(products, fault.passes)):
        node, position = edges[0]
        partner = graph.partner(node, position)
        factor = getattr(node, "_saved_self" if position else "_saved_other", None)
        what, text = "missing factor", f"{partner or 'the other factor of a product'} was not multiplied in"
        if kind(node) not in LINEAR:
            what, text = "derivative forgotten", f"the derivative of {kind(node).lower()} was forgotten"
        elif kind(node) == "Div":
            text = f"the division by {partner or 'the divisor'} was forgotten"
        elif isinstance(factor, Tensor) and is_mask(factor):
            what, text = "derivative forgotten", "the gradient passes where the derivative is 0"
        times = f" ({len(edges)} times)" if len(edges) > 1 else ""
        yield Diagnosis(what, text + times), dict.fromkeys(edges, partial(_scaled, 1.0))


def _inputs(node: Any) -> int:
    return sum(target is not None for target, _ in node.next_functions)


# nodes whose derivative is no function of a value, or is dealt with elsewhere
LINEAR = VIEWS | {
    *("Add", "Sub", "Mul", "Div", "Neg", "Mm", "Addmm", "Bmm", "Baddbmm", "Mv", "Dot", "Convolution", "Sum", "Mean"),
    *("Slice", "Select", "Index", "IndexSelect", "Gather", "Embedding", "Cat", "Stack", "Split", "SplitWithSizes"),
    *("Flip", "Roll", "Cumsum", "MaskedFill", "Where", "Rsub", "Tril", "Triu", "Diagonal", "AccumulateGrad"),
    *("Unbind", "ConstantPadNd", "AsStrided", "Scatter", "ScatterAdd", "IndexAdd", "Repeat", "CopySlices", "Cumprod"),
}


def _turned(graph: Graph) -> Iterator[Hypothesis]:
    """A square matrix that backward multiplies by, or the cotangent, was transposed."""
    for node, position in graph.edges:
        first, *saved = PRODUCTS.get(kind(node), (0,))
        if saved and position >= first:
            left = position > first  # the other matrix stands to the left of the cotangent
            other = getattr(node, saved[not left])
            for words, change in (
                (graph.partner(node, position) or "the other matrix", partial(_product, left, other, False)),
                ("the cotangent", partial(_product, left, other.mT, True)),
            ):
                text = f"in the gradient of a matrix product {words} is transposed"
                yield Diagnosis("transposed", text), {(node, position): change}


# the position of the first of the two matrices, and the attributes that hold them
PRODUCTS = {
    "Mm": (0, "_saved_self", "_saved_mat2"),
    "Bmm": (0, "_saved_self", "_saved_mat2"),
    "Addmm": (1, "_saved_mat1", "_saved_mat2"),
}


def _product(left: bool, other: Tensor, turned: bool, d_input: Tensor, d_output: Tensor) -> Tensor:
    dy = d_output.mT if turned else d_output
    return other @ dy if left else dy @ other


def _over_other_dims(graph: Graph) -> Iterator[Hypothesis]:
    """A sum or mean on the way, such as softmax's, is over other dimensions in backward than in forward."""
    for node, position in graph.edges:
        below = node.next_functions[position][0]
        if below is not None and kind(node) in BROADCASTING and kind(below) in ("Sum", "Mean"):
            for dims in subsets(graph.cotangents[0].ndim):
                found: list[Tensor] = []
                look, over = partial(unreduced, node, position, found), partial(_over, dims, kind(below), found)
                text = f"a {kind(below).lower()} on the way is over {dims_words(dims)}"
                yield Diagnosis("wrong axis", text), {(node, position): look, (below, 0): over}


def _over(dims: tuple[int, ...], what: str, found: list[Tensor], d_input: Tensor, d_output: Tensor) -> Tensor:
    """The sum or mean over other dimensions of the remembered gradient, for every element of what was summed."""
    full = found[-1]
    total = full.mean(dims, keepdim=True) if what == "Mean" else full.sum(dims, keepdim=True)
    return total.expand_as(d_input)


def unreduced(node: Any, position: int, found: list[Tensor], d_input: Tensor, d_output: Tensor) -> Tensor:
    """Changes nothing, but remembers the gradient from before it is summed."""
    found.append(BROADCASTING[kind(node)](node, position, d_output))
    return d_input


# the gradient of a broadcasting node's input before it is summed
BROADCASTING: dict[str, Callable[[Any, int, Tensor], Tensor]] = {
    "Add": lambda node, position, dy: dy,
    "Addmm": lambda node, position, dy: dy,
    "Sub": lambda node, position, dy: -dy if position else dy,
    "Mul": lambda node, position, dy: dy * (node._saved_self if position else node._saved_other),
    "Div": lambda node, position, dy: (
        -dy * node._saved_self / node._saved_other**2 if position else dy / node._saved_other
    ),
}
