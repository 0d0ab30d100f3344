"""A term of the sum is missing, wrong, or one too many."""

from itertools import combinations
from math import prod

import torch
from torch import Tensor

from gradient_check.diagnosis.fault import Fault, as_double, dims_words, numbered, subsets, times, with_graph
from gradient_check.diagnosis.terms import Graph
from gradient_check.report import Diagnosis


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


def path_missing(fault: Fault) -> Diagnosis | None:
    """A path of autograd's graph is missing, has the wrong sign, or is counted twice."""
    found = (_by_term(fault, term.gradient, f"the path through {term.words}", fitted=False) for term in fault.terms)
    return next(filter(None, found), None)


def path_wrong(fault: Fault) -> Diagnosis | None:
    """Two paths are missing, all but one, or one has another factor."""
    for term in fault.terms:
        if fault.explained_by(term.gradient):
            return Diagnosis("term", f"terms are missing: there is only the path through {term.words}")
    for one, other in combinations(fault.terms[:60], 2):
        if fault.explained_by(fault.wanted - one.gradient - other.gradient):
            return Diagnosis("term", f"two terms are missing: the paths through {one.words} and {other.words}")
    found = (_by_term(fault, term.gradient, f"the path through {term.words}", fitted=True) for term in fault.terms)
    return next(filter(None, found), None)


@with_graph
def diagonal(fault: Fault, graph: Graph) -> Diagnosis | None:
    """Only the Jacobian's diagonal: each element's own effect on its own output."""
    n = fault.wanted.numel()
    if len(graph.outputs) != 1 or graph.outputs[0].shape != fault.wanted.shape or n > fault.passes:
        return None
    units = torch.diag(graph.cotangents[0].flatten()).view(n, *fault.wanted.shape)
    own = [graph.gradient(cotangents=[unit]).flatten()[i] for i, unit in enumerate(units)]
    if fault.explained_by(torch.stack(own).view_as(fault.wanted)):
        return Diagnosis("term", "the terms off the Jacobian's diagonal are missing")
    return None


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
            along = f" along {dims_words(dims)}" if len(dims) < value.ndim else "" if key else " everywhere"
            what = f"proportional to {key}" if key else "the same"
            return Diagnosis("term", f"the error is {what}{along}: a term is missing or wrong")
    return None
