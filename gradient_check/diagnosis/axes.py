"""Summed over other dimensions than the argument was broadcast over."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from gradient_check.diagnosis.fault import Fault, as_double, dims_words, distance, norm, shape_words, subsets
from gradient_check.diagnosis.steps import BROADCASTING, unreduced
from gradient_check.diagnosis.terms import kind
from gradient_check.report import Diagnosis


def wrong_axis(fault: Fault) -> Diagnosis | None:
    for full in _unreduced(fault):
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


def _unreduced(fault: Fault) -> Iterator[Tensor]:
    """The gradients from before they were summed over the dimensions that the argument was broadcast over."""
    if fault.graph is not None:
        edges = [e for e in fault.graph.edges if fault.graph.leaf_below(*e) == fault.argument]
        for edge in [edge for edge in edges if kind(edge[0]) in BROADCASTING][: fault.passes]:
            found: list[Tensor] = []
            fault.graph.gradient({edge: partial(unreduced, *edge, found)})
            if found[-1].numel() > fault.wanted.numel():
                yield found[-1].double().cpu()
    for dy in map(as_double, fault.evidence.cotangents) if fault.graph is None else ():
        for factor in (torch.ones_like(dy), *(t for t in fault.tensors.values() if t.shape == dy.shape)):
            full = dy * factor
            summed, like = full.sum(_reduced_dims(full, fault.wanted)).flatten(), fault.wanted.flatten()
            fits = full.numel() > like.numel() == summed.numel()
            if fits and distance(summed, like) <= fault.evidence.noise * norm(like):
                yield full


def _reduced_dims(full: Tensor, like: Tensor) -> tuple[int, ...]:
    """The dimensions that broadcasting `like` to `full` added or stretched."""
    lead = full.ndim - like.ndim
    return tuple(d for d in range(full.ndim) if d < lead or like.shape[d - lead] != full.shape[d])
