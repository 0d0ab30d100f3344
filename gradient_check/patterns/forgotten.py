"""Something that backward has to multiply by was left out: the cotangent, a mask, a factor, a derivative."""

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gradient_check.patterns.case import ACCIDENT, Case, distance, is_mask, plain, with_graph
from gradient_check.report import Diagnosis
from gradient_check.terms import VIEWS, Graph, kind


def ones(case: Case) -> Diagnosis | None:
    text = "it is the gradient for a cotangent of ones: the cotangent was ignored"
    if case.graph is None and [dy.numel() for dy in case.evidence.cotangents] == [1]:
        if case.is_(case.wanted / plain(case.evidence.cotangents[0])):
            return Diagnosis("ones", text)
    elif case.graph is not None:
        value = case.graph.gradient(cotangents=[torch.ones_like(dy) for dy in case.graph.cotangents])
        if case.is_(value):
            return Diagnosis("ones", text)
    return None


def mask_ignored(case: Case) -> Diagnosis | None:
    """A mask, an argument of zeros and one other value, was left out: times the mask, the gradient is right."""
    for key, mask in case.masks.items():
        keep = plain(mask)
        for numbers in (keep, (keep != 0).double(), (keep == 0).double()):
            if _multiplied(case, numbers):
                return Diagnosis("mask ignored", f"the mask {key} was ignored")
    return None


@with_graph
def mask_ignored_throughout(case: Case, graph: Graph) -> Diagnosis | None:
    """The gradient is that of a forward with nothing, or everything, masked."""
    for key, mask in case.masks.items():
        for value in {0, 1, *mask[mask != 0][:1].tolist()}:
            with suppress(Exception):  # a forward may refuse such a mask
                if case.is_(case.again(**{key: torch.full_like(mask, value)})):
                    return Diagnosis("mask ignored", f"the mask {key} was ignored")
    return None


@with_graph
def mask_ignored_inside(case: Case, graph: Graph) -> Diagnosis | None:
    """The gradient went through a masking operation on the way as if nothing were masked."""
    for node, position in graph.edges:
        attribute = {"Mul": "_saved_self" if position else "_saved_other", "Where": "_saved_condition"}
        mask = getattr(node, attribute.get(kind(node), "_saved_mask"), None)
        if not isinstance(mask, Tensor) or not is_mask(mask):
            continue
        numbers = plain(mask)
        pattern = numbers.flatten() != 0
        named = [key for key, value in case.arguments_at(pattern.numel()) if torch.equal(value != 0, pattern)]
        # not an argument, it is a mask if it is the same for all examples, and else may be part of an activation
        if named or kind(node) == "MaskedFill" or mask.ndim < graph.cotangents[0].ndim:
            for value in {1.0, numbers[numbers != 0][0].item()}:
                if case.is_(graph.gradient({(node, position): partial(_scaled, value)})):
                    return Diagnosis("mask ignored", " ".join(["the mask", *named[:1], "was ignored"]))
    return None


def _scaled(factor: float, d_input: Tensor, d_output: Tensor) -> Tensor:
    return factor * d_output.sum_to_size(d_input.shape)


def missing_factor(case: Case) -> Diagnosis | None:
    """An argument, or a function of an output, by which the gradient was not multiplied."""
    cotangents = [plain(dy) for dy in case.evidence.cotangents if dy.shape == case.given.shape]
    for key, tensor in case.tensors.items():
        own = key == case.argument or key.startswith("the output")
        for words, factor, curved in _functions(key, tensor, own):
            if _multiplied(case, factor):
                if own and (curved or any(distance(case.given, dy) == 0 for dy in cotangents)):
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


def _multiplied(case: Case, factor: Tensor) -> bool:
    """Whether what was returned, times the factor, is right."""
    for spread in _spread(factor, case.given):
        if bool((spread == spread.flatten()[0]).all()):
            continue  # a constant: that has its own name
        value = case.given * spread
        if not value.isfinite().all() or (spread == 0).sum() > 2 * (case.given[spread == 0] != 0).sum():
            continue  # where the factor is 0, it made no difference
        remainder, size = distance(value, case.wanted), case.wanted.norm().item()
        informative = int((case.wanted != 0).sum())
        if size and remainder <= case.evidence.noise * size and case.evidence.noise**informative <= ACCIDENT:
            return distance(case.given, case.wanted) > 20 * remainder
    return False


def _spread(factor: Tensor, like: Tensor) -> Iterator[Tensor]:
    """A factor broadcast to a shape: from the last dimensions, as torch does, from the first, or along the second."""
    after = like.ndim - factor.ndim
    shapes = {tuple(factor.shape), (*factor.shape, *[1] * after), (1, *factor.shape, *[1] * (after - 1))}
    for shape in sorted(shapes, key=len):
        sizes = zip(reversed(shape), reversed(like.shape), strict=False)
        if len(shape) <= like.ndim and all(size in (1, wanted) for size, wanted in sizes):
            yield factor.reshape(shape).expand(like.shape)


@with_graph
def local_derivative(case: Case, graph: Graph) -> Diagnosis | None:
    """One operation's derivative, or a product's other factor, left out somewhere on the way."""
    curved = [(n, i) for n, i in graph.edges if kind(n) not in LINEAR and _inputs(n) == 1]
    products = [(n, i) for n, i in graph.edges if kind(n) == "Mul" or (kind(n) == "Div" and i == 0)]
    for edges in (*graph.groups(curved, case.passes), *graph.groups(products, case.passes)):
        node, position = edges[0]
        with suppress(RuntimeError):  # where the shapes do not fit, it was something else
            if case.is_(graph.gradient(dict.fromkeys(edges, partial(_scaled, 1.0)))):
                times = f" ({len(edges)} times)" if len(edges) > 1 else ""
                if kind(node) not in LINEAR:
                    text = f"the derivative of {kind(node).lower()} was forgotten"
                    return Diagnosis("derivative forgotten", text + times)
                saved = getattr(node, "_saved_self" if position else "_saved_other", None)
                what = f"{graph.partner(node, position) or 'the other factor of a product'} was not multiplied in"
                if kind(node) == "Div":
                    what = f"the division by {graph.partner(node, position) or 'the divisor'} was forgotten"
                elif isinstance(saved, Tensor) and is_mask(saved):
                    return Diagnosis("derivative forgotten", f"the gradient passes where it is 0{times}")
                return Diagnosis("missing factor", what + times)
    return None


def _inputs(node: Any) -> int:
    return sum(target is not None for target, _ in node.next_functions)


# nodes whose derivative is no function of a value, or is dealt with elsewhere
LINEAR = VIEWS | {
    *("Add", "Sub", "Mul", "Div", "Neg", "Mm", "Addmm", "Bmm", "Baddbmm", "Mv", "Dot", "Convolution", "Sum", "Mean"),
    *("Slice", "Select", "Index", "IndexSelect", "Gather", "Embedding", "Cat", "Stack", "Split", "SplitWithSizes"),
    *("Flip", "Roll", "Cumsum", "MaskedFill", "Where", "Rsub", "Tril", "Triu", "Diagonal", "AccumulateGrad"),
    *("Unbind", "ConstantPadNd", "AsStrided", "Scatter", "ScatterAdd", "IndexAdd", "Repeat", "CopySlices", "Cumprod"),
}


def cotangent_unchanged(case: Case) -> Diagnosis | None:
    for dy in case.evidence.cotangents:
        if case.is_(plain(dy)):
            return Diagnosis("derivative forgotten", "it is the cotangent, unchanged")
        lead = dy.ndim - case.given.ndim
        if lead > 0 and dy.shape[lead:] == case.given.shape and case.is_(plain(dy).sum(tuple(range(lead)))):
            text = f"it is the sum of the cotangent: what {case.argument} is multiplied with is missing"
            return Diagnosis("missing factor", text)
    return None
