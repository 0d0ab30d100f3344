"""A term of the sum is missing, wrong, or one too many."""

from itertools import combinations
from math import prod

import torch
from torch import Tensor

from gradient_check.patterns.case import Case, dims_words, numbered, plain, subsets, with_graph
from gradient_check.report import Diagnosis
from gradient_check.terms import Graph


def candidate(case: Case) -> Diagnosis | None:
    """A term that the caller suspects."""
    for key, value in case.evidence.candidates.items():
        if value.shape == case.wanted.shape and (found := _by_term(case, plain(value), key, fitted=True)):
            return found
    return None


def _by_term(case: Case, term: Tensor, words: str, *, fitted: bool) -> Diagnosis | None:
    for c, text in ((1, "is missing"), (2, "has the wrong sign"), (-1, "is counted twice")):
        if case.is_(case.wanted - c * term):
            return Diagnosis("term", f"a term {text}: {words}")
    size = term.pow(2).sum().item()
    if fitted and size > 0:
        excess = (term * case.error).sum().item() / size
        if case.is_(case.wanted + excess * term, free=2):
            return Diagnosis("term", f"a term is {1 + excess:.6g} times its right value: {words}")
    return None


@with_graph
def output_ignored(case: Case, graph: Graph) -> Diagnosis | None:
    """One of several outputs' cotangents does not count."""
    for i in range(len(graph.cotangents)) if len(graph.cotangents) > 1 else ():
        dys = [torch.zeros_like(dy) if j == i else dy for j, dy in enumerate(graph.cotangents)]
        if case.is_(graph.gradient(cotangents=dys)):
            return Diagnosis("term", f"a term is missing: the cotangent of output {i}")
    return None


@with_graph
def path_missing(case: Case, graph: Graph) -> Diagnosis | None:
    """A path of autograd's graph is missing, has the wrong sign, or is counted twice."""
    for term in case.terms:
        if found := _by_term(case, term.gradient, f"the path through {term.words}", fitted=False):
            return found
    return None


@with_graph
def path_wrong(case: Case, graph: Graph) -> Diagnosis | None:
    """Two paths are missing, all but one, or one has another factor."""
    for term in case.terms:
        if case.is_(term.gradient):
            return Diagnosis("term", f"terms are missing: there is only the path through {term.words}")
    for one, other in combinations(case.terms[:60], 2):
        if case.is_(case.wanted - one.gradient - other.gradient):
            return Diagnosis("term", f"two terms are missing: the paths through {one.words} and {other.words}")
    for term in case.terms:
        if found := _by_term(case, term.gradient, f"the path through {term.words}", fitted=True):
            return found
    return None


@with_graph
def diagonal(case: Case, graph: Graph) -> Diagnosis | None:
    """Only the Jacobian's diagonal: each element's own effect on its own output."""
    if len(graph.outputs) != 1 or graph.outputs[0].shape != case.wanted.shape:
        return None
    dy, n = graph.cotangents[0].flatten(), case.wanted.numel()
    if n > case.passes:
        return None
    result = torch.zeros(n, dtype=torch.float64)
    for i in range(n):
        unit = torch.zeros_like(dy)
        unit[i] = dy[i]
        result[i] = graph.gradient(cotangents=[unit.view_as(graph.cotangents[0])]).flatten()[i]
    if case.is_(result.view_as(case.wanted)):
        return Diagnosis("term", "the terms off the Jacobian's diagonal are missing")
    return None


def weight_decay(case: Case) -> Diagnosis | None:
    argument = case.tensors.get(case.argument)
    if argument is None or argument.norm() == 0:
        return None
    c = float((argument * case.error).sum() / argument.pow(2).sum())
    if case.is_(case.wanted + c * argument, free=2):
        return Diagnosis("weight decay", f"{c:.6g} times {case.argument} itself was added")
    return None


def constant_error(case: Case) -> Diagnosis | None:
    """The error is the same along some dimensions: a mean or a sum is missing or wrong."""
    for dims in subsets(case.error.ndim):
        size = prod(case.error.shape[d] for d in dims)
        mean = case.error.mean(dims, keepdim=True).expand_as(case.error)
        if size >= 3 and case.is_(case.wanted + mean, free=case.error.numel() // size):
            where = "everywhere" if len(dims) == case.error.ndim else f"along {dims_words(dims)}"
            return Diagnosis("term", f"the error is the same {where}: a term with a sum or mean is missing or wrong")
    return None


def proportional_error(case: Case) -> Diagnosis | None:
    """The error is, row by row, proportional to something known."""
    known = dict(case.tensors)
    for i, dy in enumerate(case.evidence.cotangents):
        known[numbered("the cotangent", i, len(case.evidence.cotangents))] = plain(dy)
    known |= {key: plain(value) for key, value in case.evidence.candidates.items()}
    for key, value in known.items():
        if value.shape != case.error.shape:
            continue
        for dims in (tuple(range(value.ndim)), *((d,) for d in range(value.ndim) if value.ndim > 1)):
            size = prod(value.shape[d] for d in dims)
            square = value.pow(2).sum(dims, keepdim=True)
            c = (value * case.error).sum(dims, keepdim=True) / square.where(square > 0, 1.0)
            if size >= 3 and case.is_(case.wanted + c * value, free=value.numel() // size + 1):
                each = "" if len(dims) == value.ndim else f" along {dims_words(dims)}"
                return Diagnosis("term", f"the error is proportional to {key}{each}: a term is missing or wrong")
    return None
