"""A step of backward's way was done wrong; or a term of the sum is missing, wrong, or one too many."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from itertools import chain, combinations, islice
from math import prod

import torch
from torch import Tensor

from gradient_check.diagnosis.fault import Fault, as_double, dims_words, is_mask, is_trained, numbered, subsets, times
from gradient_check.diagnosis.terms import VIEWS, Change, Edge, Graph, kind
from gradient_check.report import Diagnosis

Hypothesis = tuple[Diagnosis, Mapping[Edge, Change]]


def wrong_step(fault: Fault) -> Diagnosis | None:
    """The gradient is what autograd's graph gives with another gradient at one of its steps."""
    graph = fault.graph
    if graph is None:
        return None
    for diagnosis, changes in chain(_left_out(fault, graph), islice(_turned(graph), fault.passes)):
        with suppress(RuntimeError, IndexError):  # where the shapes do not fit, it was something else
            if fault.explained_by(graph.gradient(changes)):
                return diagnosis
    return None


def _unchanged(d_input: Tensor, d_output: Tensor) -> Tensor:
    return d_output.sum_to_size(d_input.shape)


def _left_out(fault: Fault, graph: Graph) -> Iterator[Hypothesis]:
    """An operation's derivative, or a product's other factor."""
    inputs = {n: sum(target is not None for target, _ in n.next_functions) for n in graph.nodes}
    curved = [(n, i) for n, i in graph.edges if kind(n) not in LINEAR and inputs[n] == 1]
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
        elif is_mask(factor) and not is_trained(fault, partner):
            what, text = "mask ignored", f"the mask {partner} was ignored: the gradient passes where it is 0"
        often = f" ({len(edges)} times)" if len(edges) > 1 else ""
        yield Diagnosis(what, text.replace("  ", " ") + often), dict.fromkeys(edges, _unchanged)


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
            name = graph.leaf_below(node, 2 * first + 1 - position) or "the other matrix"
            for words, matrix, turned in ((name, other, False), ("the cotangent", other.mT, True)):
                text = f"in the gradient of a matrix product {words} is transposed"
                yield Diagnosis("transposed", text), {(node, position): partial(_product, left, matrix, turned)}


# the position of the first of the two matrices, and the attributes that hold them
PRODUCTS = {
    **dict.fromkeys(("Mm", "Bmm"), (0, "_saved_self", "_saved_mat2")),
    "Addmm": (1, "_saved_mat1", "_saved_mat2"),
}


def _product(left: bool, other: Tensor, turned: bool, d_input: Tensor, d_output: Tensor) -> Tensor:
    dy = d_output.mT if turned else d_output
    return other @ dy if left else dy @ other


def candidate(fault: Fault) -> Diagnosis | None:
    """A term that the caller suspects."""
    for key, value in fault.evidence.candidates.items():
        if value.shape == fault.wanted.shape and (found := _by_term(fault, as_double(value), key, fitted=True)):
            return found
    return None


def _by_term(fault: Fault, term: Tensor, words: str, *, fitted: bool) -> Diagnosis | None:
    for c, text in ((1, "is missing"), (2, "has the wrong sign"), (-1, "is counted twice")):
        if fault.explained_by(fault.wanted - c * term):
            return Diagnosis("term", f"a term {text}: {words}")
    size = term.pow(2).sum().item()
    if fitted and size > 0:
        excess = (term * fault.error).nansum().item() / size
        if fault.explained_by(fault.wanted + excess * term, free=2):
            return Diagnosis("term", f"a term is {times(1 + excess)} times its correct value: {words}")
    return None


def output_ignored(fault: Fault) -> Diagnosis | None:
    """One of several outputs has no part in the gradient: a last state, at the end of a segment."""
    graph = fault.graph
    if graph is None or len(graph.outputs) < 2:
        return None
    for k, number in enumerate(graph.numbers):
        rest = [torch.zeros_like(dy) if j == k else dy for j, dy in enumerate(graph.cotangents)]
        if fault.explained_by(graph.gradient(cotangents=rest)):
            return Diagnosis("term", f"what comes back from output {number} is ignored")
    return None


def path_missing(fault: Fault) -> Diagnosis | None:
    """A path of autograd's graph is missing, has the wrong sign, or is counted twice."""
    found = (_by_term(fault, term.gradient, f"the path through {term.words}", fitted=False) for term in fault.terms)
    return next(filter(None, found), None)


def path_wrong(fault: Fault) -> Diagnosis | None:
    """Two paths are missing, or one has another factor."""
    for one, other in combinations(fault.terms[:60], 2):
        if fault.explained_by(fault.wanted - one.gradient - other.gradient):
            return Diagnosis("term", f"two terms are missing: the paths through {one.words} and {other.words}")
    found = (_by_term(fault, term.gradient, f"the path through {term.words}", fitted=True) for term in fault.terms)
    return next(filter(None, found), None)


def proportional_error(fault: Fault) -> Diagnosis | None:
    """The error is, row by row, the same or proportional to something known: a term with a sum or mean, or λw."""
    known = {"": torch.ones_like(fault.wanted), **fault.tensors}
    for i, dy in enumerate(fault.evidence.cotangents):
        known[numbered("the cotangent", i, len(fault.evidence.cotangents))] = as_double(dy)
    for key, value in known.items():
        if value.shape != fault.error.shape:
            continue
        for dims in sorted(subsets(value.ndim), key=len, reverse=bool(key)):
            size = prod(value.shape[d] for d in dims)
            square = value.pow(2).where(~fault.error.isnan(), 0.0).sum(dims, keepdim=True)
            c = (value * fault.error).nansum(dims, keepdim=True) / square.where(square > 0, 1.0)
            fitted = int(fault.wrong.sum_to_size(c.shape).count_nonzero()) + int((~fault.wrong).sum()) + 1
            if size < 3 or not fault.explained_by(fault.wanted + c * value, free=fitted):
                continue
            if key and key == fault.argument and c.numel() == 1:
                return Diagnosis("weight decay", f"{times(c.item())} times {key} itself was added")
            said = [d for d in dims if d < value.ndim - fault.paired]
            along = f" along {dims_words(said)}" if len(said) < value.ndim - fault.paired else ""
            what = f"proportional to {key}" if key else "the same" if along else "the same everywhere"
            return Diagnosis("term", f"the error is {what}{along}: a term is missing or wrong")
    return None
