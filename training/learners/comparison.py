"""One forward and backward pass of the hand-written model and of its twin, compared tensor by tensor."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt

import torch
from torch import Tensor

from gradient_check import Report, compare_gradients
from training.data import as_format
from training.learners.base import Backpropagation, LearnerState
from training.learners.manual import ManualLearner
from training.learners.reference import ReferenceLearner

DRAWS = 3  # of random rounding, in `magnification`
SYMBOLS = {"gamma": "γ", "beta": "β", "alpha": "α"}  # arguments of layers in the equations, where they differ


@dataclass(frozen=True)
class Passes:
    """What each learner computed, and the verdict on it."""

    manual: Backpropagation
    others: list[Backpropagation]
    report: Report


def compare_passes(manual: ManualLearner, others: Sequence[ReferenceLearner], x: Tensor, y: Tensor) -> Passes:
    """Compare the cost, every output, δ and gradient, the new buffers and memory of learners at the same θ.

    `others` is the reference and, below float64, a reference in float64 that is the truth. ∂C/∂output is a difference
    that may be all rounding (`condition`): it is compared by itself, and then all propagate the manual one back. Where
    anything still differs, a z next to a kink may lie on the other side of it (relu), or another pixel be the largest
    (max pooling): then the others go through each layer from the manual z and a of the one before, so that every layer
    is compared by itself. If that differs too, rounding may have been magnified on its way, and it is measured how much
    (`magnification`). A gradient that is zero in exact arithmetic is judged by the size of the δs that cancel in it.
    """
    mine = manual.backpropagate(x, y)
    d_output = mine.deltas["output"].clone()
    sizes = {f"∂C/∂ {p}": sum(mine.deltas[d].norm().item() for d in deltas) for p, deltas in manual.zeros.items()}
    labels = {name: describe(name, mine) for name in tensors_of(mine)}
    for at in (None, mine):
        theirs = [
            learner.backpropagate(as_format(x, learner.dtype), y, d_output.to(learner.dtype), at=at)
            for learner in others
        ]
        named = [tensors_of(result) for result in (mine, *theirs)]
        conditions = dict.fromkeys(("C", "δ output"), condition(theirs[-1], mine.deltas["output"].dtype))
        report = _compare(named, labels, conditions, sizes)
        if report.passed or not all(_same_shapes(mine.outputs, result.outputs) for result in theirs):
            return Passes(mine, theirs, report)  # an output of another shape cannot go into the others' next layer
    measured, floors = magnification(others[0], x, y, d_output, named[1], mine)
    report = _compare(named, labels, measured | conditions, floors | sizes)
    return Passes(mine, theirs, report)


def compare_steps(manual: ManualLearner, others: Sequence[ReferenceLearner], passes: Passes, lr: Tensor) -> Report:
    """Let all learners take the step that the manual gradient calls for; compare parameters, buffers, optimizer state.

    The gradients are compared already (`passes`). That all start from the same one keeps their differences from being
    magnified: Lion makes a whole step of the sign of what is left where two terms cancel.
    """
    gradients = {name: gradient.clone() for name, gradient in passes.manual.gradients.items()}
    manual.apply(passes.manual, lr)
    for learner, result in zip(others, passes.others, strict=True):
        learner.apply(_with(result, gradients), lr)
    after = [values_of(manual.state_dict()), *(values_of(learner.state_dict()) for learner in others)]
    labels = {name: f"the step's new {name}" for name in after[0]}
    return _compare(after, labels, {}, {})


def _with(result: Backpropagation, gradients: Mapping[str, Tensor]) -> Backpropagation:
    """`result` with these gradients, in its own format, in the place of its own."""
    return replace(result, gradients={name: g.to(result.gradients[name], copy=True) for name, g in gradients.items()})


def values_of(state: LearnerState) -> dict[str, Tensor]:
    """Parameters and buffers by their names, `memory h`, and the optimizer's tensors as `velocity of layer1.weight`."""
    memory = {f"memory {name}": tensor for name, tensor in _floating(state["memory"]).items()}
    optimizer = {f"{key} of {name}": t for key, named in state["optimizer"].items() for name, t in named.items()}
    return _floating(state["model"]) | memory | optimizer


def tensors_of(result: Backpropagation) -> dict[str, Tensor]:
    """All that was computed, causes before effects: `z layer1`, `a layer1`, `C`, `δ layer1`, `∂C/∂ layer1.weight`, ….

    What comes back to an activation is `∂C/∂a layer1`.
    """
    named = {_named(name, "z", "a"): tensor for name, tensor in result.outputs.items()}
    named["C"] = result.loss
    named |= {_named(name, "δ", "∂C/∂a"): delta for name, delta in result.deltas.items()}
    named |= {f"∂C/∂ {name}": gradient for name, gradient in reversed(list(result.gradients.items()))}
    named |= {f"buffer {name}": tensor for name, tensor in _floating(result.buffers).items()}
    return named | {f"memory {name}": tensor for name, tensor in _floating(result.memory).items()}


def _named(call: str, kind: str, of_activation: str) -> str:
    return f"{of_activation} {call.removesuffix('.a')}" if call.endswith(".a") else f"{kind} {call}"


def describe(name: str, result: Backpropagation) -> str:
    """A name of `tensors_of` with its equation: "BP4, layer 2, ∂C/∂W". `result` is the hand-written learner's."""
    kind, _, tensor = name.partition(" ")
    if not tensor:
        return "the cost C"
    if tensor == "output":
        return "∂C/∂output"
    layer, _, part = tensor.rpartition(".") if kind in ("∂C/∂", "buffer") else (tensor, "", "")
    place = re.sub(r"([a-z])(\d+)", r"\1 \2", layer).replace(".", " ")
    if kind == "∂C/∂":
        label, symbol = result.equations.get(tensor, ("", ""))
        symbol = SYMBOLS.get(symbol, symbol) or {"weight": "W", "bias": "b"}.get(part, part)
        return ", ".join(filter(None, (label, place, f"∂C/∂{symbol}")))
    if kind == "buffer":
        return f"{place}, {part}" if layer else part
    label = result.labels.get(f"{tensor}.a" if kind == "∂C/∂a" else tensor, "") if kind in ("δ", "∂C/∂a") else ""
    return ", ".join(filter(None, (label, place, kind)))


def _same_shapes(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Of the tensors that both have."""
    return all(a[name].shape == b[name].shape for name in a.keys() & b.keys())


def condition(result: Backpropagation, dtype: torch.dtype) -> float:
    """How much smaller ∂C/∂output is than the two vectors, of length 1 per example, whose difference it is.

    Every cost's gradient is (something − y) / B: once the network is sure and right, only rounding is left of it.
    `result` is the reference's, because the hand-written value is on trial; `dtype` is that value's.
    """
    d_output = result.deltas["output"]
    size = 2 / sqrt(len(d_output))
    norm = d_output.norm().item()
    limit = 1 / torch.finfo(dtype).eps
    return min(max(size / norm, 1.0), limit) if norm else limit


def magnification(
    reference: ReferenceLearner,
    x: Tensor,
    y: Tensor,
    d_output: Tensor,
    result: Mapping[str, Tensor],
    at: Backpropagation,
) -> tuple[dict[str, float], dict[str, float]]:
    """How far one unit of rounding moves each tensor of `result`, in units of rounding of its norm.

    The reference repeats its pass several times with every z, a, σ′ and ∂C/∂output off by one unit, up or down at
    random: saturation, sums that cancel and underflow all show in how far the results then scatter. The second mapping
    has the tensors that are zero in `result` but not after rounding, with the size to judge them by.
    """
    epsilon = torch.finfo(d_output.dtype).eps
    moved = dict.fromkeys(result, 0.0)
    for seed in range(DRAWS):
        generator = torch.Generator().manual_seed(seed)
        rounded = tensors_of(reference.backpropagate(x, y, d_output, rounding=generator, at=at))
        for name, tensor in result.items():
            difference = rounded[name].double() - tensor.double()
            moved[name] = max(moved[name], difference.norm().item())
    conditions, floors = {}, {}
    for name, tensor in result.items():
        norm = tensor.double().norm().item()
        if norm:
            conditions[name] = max(1.0, moved[name] / (epsilon * norm))
        elif moved[name]:
            floors[name] = moved[name] / epsilon
    return conditions, floors


def _compare(
    named: Sequence[Mapping[str, Tensor]],
    labels: Mapping[str, str],
    conditions: Mapping[str, float],
    zeros: Mapping[str, float],
) -> Report:
    actual, expected, *truth = named
    if not _finite(actual) and not _finite(expected):
        return Report(())  # both have left the numbers: the training loop stops there and names the place
    in_order = {name: expected[name] for name in actual if name in expected} | dict(expected)
    return compare_gradients(
        actual,
        in_order,
        truth=truth[0] if truth else None,
        labels=labels,
        condition=conditions,
        zeros=zeros,
        allow_trivial=True,  # a dead relu's gradient is zero, and its loss may be
    )


def _floating(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}


def _finite(tensors: Mapping[str, Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors.values())
