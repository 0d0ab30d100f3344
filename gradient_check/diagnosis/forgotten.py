"""Something that backward has to multiply by was left out: the cotangent, a mask, a factor, a derivative."""

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gradient_check.diagnosis.fault import ACCIDENT, Fault, as_double, distance, is_mask, norm, with_graph
from gradient_check.diagnosis.terms import VIEWS, Graph, kind
from gradient_check.report import Diagnosis


def ones(fault: Fault) -> Diagnosis | None:
    text = "this is the gradient for a cotangent of ones: the cotangent was ignored"
    value = None
    if fault.graph is not None:
        value = fault.graph.gradient(cotangents=[torch.ones_like(dy) for dy in fault.graph.cotangents])
    elif [dy.numel() for dy in fault.evidence.cotangents] == [1]:
        value = fault.wanted / as_double(fault.evidence.cotangents[0])
    return Diagnosis("ones", text) if value is not None and fault.explained_by(value) else None


def mask_ignored(fault: Fault) -> Diagnosis | None:
    """A mask, an argument of zeros and one other value: times the mask, or with nothing masked, all is explained."""
    for key, mask in fault.masks.items():
        keep = as_double(mask)
        without = [torch.full_like(mask, value) for value in sorted({0, 1, *mask[mask != 0][:1].tolist()})]
        if any(_multiplied(fault, numbers) for numbers in (keep, (keep != 0).double(), (keep == 0).double())) or any(
            fault.explained_by(value) for value in fault.again(key, without)
        ):
            return Diagnosis("mask ignored", f"the mask {key} was ignored")
    return None


@with_graph
def mask_ignored_inside(fault: Fault, graph: Graph) -> Diagnosis | None:
    """The gradient went through a masking operation on the way as if nothing were masked."""
    for node, position in graph.edges:
        attribute = {"Mul": "_saved_self" if position else "_saved_other", "Where": "_saved_condition"}
        mask = getattr(node, attribute.get(kind(node), "_saved_mask"), None)
        if not isinstance(mask, Tensor) or not is_mask(mask):
            continue
        numbers = as_double(mask)
        others = {k: v for k, v in fault.evidence.arguments.items() if isinstance(v, Tensor) and k != fault.argument}
        named = [k for k, v in others.items() if torch.equal(v.cpu().flatten() != 0, numbers.flatten() != 0)]
        # not an argument, it is a mask if it is the same for all examples, and else may be part of an activation
        if named or kind(node) == "MaskedFill" or mask.ndim < graph.cotangents[0].ndim:
            for value in {1.0, numbers[numbers != 0][0].item()}:
                if fault.explained_by(graph.gradient({(node, position): partial(_scaled, value)})):
                    return Diagnosis("mask ignored", " ".join(["the mask", *named[:1], "was ignored"]))
    return None


def _scaled(factor: float, d_input: Tensor, d_output: Tensor) -> Tensor:
    return factor * d_output.sum_to_size(d_input.shape)


def missing_factor(fault: Fault) -> Diagnosis | None:
    """An argument, or a function of an output, by which the gradient was not multiplied."""
    unchanged = any(torch.equal(fault.given, as_double(dy)) for dy in fault.evidence.cotangents)
    for key, tensor in fault.tensors.items():
        own = key == fault.argument or key.startswith("the output")
        for words, factor, curved in _functions(key, tensor, own):
            if _multiplied(fault, factor):
                if own and (curved or unchanged):
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


def _multiplied(fault: Fault, factor: Tensor) -> bool:
    """Whether what was returned, times the factor, is correct."""
    noise = fault.evidence.noise
    for spread in _spread(factor, fault.given):
        if bool((spread == spread.flatten()[0]).all()):
            continue  # a constant: that has its own name
        value = fault.given * spread
        if not value.isfinite().all() or (spread == 0).sum() > 2 * (fault.given[spread == 0] != 0).sum():
            continue  # where the factor is 0, it made no difference
        remainder, size = distance(value, fault.wanted), norm(fault.wanted)
        if size and remainder <= noise * size and noise ** int((fault.wanted.nan_to_num() != 0).sum()) <= ACCIDENT:
            return distance(fault.given, fault.wanted) > 20 * remainder
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
def local_derivative(fault: Fault, graph: Graph) -> Diagnosis | None:
    """One operation's derivative, or a product's other factor, left out somewhere on the way."""
    curved = [(n, i) for n, i in graph.edges if kind(n) not in LINEAR and _inputs(n) == 1]
    products = [(n, i) for n, i in graph.edges if kind(n) == "Mul" or (kind(n) == "Div" and i == 0)]
    for edges in (*graph.groups(curved, fault.passes), *graph.groups(products, fault.passes)):
        node, position = edges[0]
        with suppress(RuntimeError):  # where the shapes do not fit, it was something else
            if fault.explained_by(graph.gradient(dict.fromkeys(edges, partial(_scaled, 1.0)))):
                times = f" ({len(edges)} times)" if len(edges) > 1 else ""
                if kind(node) not in LINEAR:
                    text = f"the derivative of {kind(node).lower()} was forgotten"
                    return Diagnosis("derivative forgotten", text + times)
                saved = getattr(node, "_saved_self" if position else "_saved_other", None)
                partner = graph.partner(node, position)
                if kind(node) == "Div":
                    text = f"the division by {partner or 'the divisor'} was forgotten"
                elif isinstance(saved, Tensor) and is_mask(saved):
                    return Diagnosis("derivative forgotten", f"the gradient passes where it is 0{times}")
                else:
                    text = f"{partner or 'the other factor of a product'} was not multiplied in"
                return Diagnosis("missing factor", text + times)
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


def cotangent_unchanged(fault: Fault) -> Diagnosis | None:
    for dy in map(as_double, fault.evidence.cotangents):
        if fault.explained_by(dy):
            return Diagnosis("derivative forgotten", "this is the cotangent, unchanged")
        lead = dy.ndim - fault.given.ndim
        if lead > 0 and fault.explained_by(dy.sum(tuple(range(lead)))):
            text = f"this is the sum of the cotangent: what {fault.argument} is multiplied with is missing"
            return Diagnosis("missing factor", text)
    return None
