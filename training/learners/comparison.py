"""One forward and backward pass of the hand-written model and of its twin, compared tensor by tensor."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import sqrt

import torch
from torch import Tensor

from gradient_check import Report, Step, check_step, compare_gradients
from training.data import as_format
from training.errors import UserError
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
    sizes = {f"d{p}": sum(mine.deltas[d].norm().item() for d in deltas) for p, deltas in manual.zeros.items()}
    labels = {name: describe(name, mine) for name in tensors_of(mine)}
    for at in (None, mine):
        theirs = [
            learner.backpropagate(as_format(x, learner.dtype), y, d_output.to(learner.dtype), at=at)
            for learner in others
        ]
        conditions = dict.fromkeys(("loss", "δ output"), condition(theirs[-1], mine.deltas["output"].dtype))
        report = _compared(mine, theirs, labels, conditions, sizes)
        if report.passed or not all(_same_shapes(mine.outputs, result.outputs) for result in theirs):
            return Passes(mine, theirs, report)  # an output of another shape cannot go into the others' next layer
    measured, floors = magnification(others[0], x, y, d_output, tensors_of(theirs[0]), mine, sizes)
    report = _compared(mine, theirs, labels, measured | conditions, floors | sizes)
    return Passes(mine, theirs, report)


def _compared(
    mine: Backpropagation,
    theirs: Sequence[Backpropagation],
    labels: Mapping[str, str],
    conditions: Mapping[str, float],
    zeros: Mapping[str, float],
) -> Report:
    """What `check_step` says of passes that are done. Raises UserError for a call that only one of them knows."""
    own, expected = tensors_of(mine), tensors_of(theirs[0])
    if alone := sorted(own.keys() ^ expected.keys()):
        raise UserError(
            f"only one of the model and its twin has {alone[0]}: the twin's observed() has to name a module for every "
            "call of the model, and both have to have the same parameters, buffers and memory"
        )
    if not _finite(own) and not _finite(expected):
        return Report(())  # both have left the numbers: the training loop stops there and names the place
    step, reference, *truth = (partial(_step, result) for result in (mine, *theirs))
    return check_step(
        step,
        reference,
        (),
        truth=truth[0] if truth else None,
        labels=labels,
        condition=conditions,
        zeros=zeros,
        allow_trivial=True,  # a dead relu's gradient is zero, and its loss may be
        seed=None,  # both have computed already
    )


def _step(result: Backpropagation) -> Step:
    others = {name: tensor for name, tensor in tensors_of(result).items() if " " in name}
    return Step(result.loss, dict(reversed(list(result.gradients.items()))), others)


def compare_steps(manual: ManualLearner, others: Sequence[ReferenceLearner], passes: Passes, lr: Tensor) -> Report:
    """Let all learners take the step that the manual gradient calls for; compare parameters, buffers, optimizer state.

    The gradients are compared already (`passes`). That all start from the same one keeps their differences from being
    magnified: Lion makes a whole step of the sign of what is left where two terms cancel. What is left may itself be
    rounding, and then the truth steps another way: it judges only where the two that round alike differ.
    """
    gradients = {name: gradient.clone() for name, gradient in passes.manual.gradients.items()}
    manual.apply(passes.manual, lr)
    for learner, result in zip(others, passes.others, strict=True):
        learner.apply(_with(result, gradients), lr)
    after = [values_of(manual.state_dict()), *(values_of(learner.state_dict()) for learner in others)]
    labels = {name: f"the step's new {name}" for name in after[0]}
    if not any(_finite(values) for values in after[:2]):
        return Report(())
    mine, theirs, *exact = after
    truth = _where_they_differ(mine, theirs, exact[0]) if exact else None
    return compare_gradients(mine, theirs, truth=truth, labels=labels, allow_trivial=True)


def _where_they_differ(
    mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor], exact: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The exact values; where the other two are the same to the bit, theirs."""
    truth = dict(exact)
    for name in mine.keys() & theirs.keys():
        if mine[name].shape == theirs[name].shape:
            truth[name] = torch.where(mine[name] == theirs[name], theirs[name].to(exact[name]), exact[name])
    return truth


def _with(result: Backpropagation, gradients: Mapping[str, Tensor]) -> Backpropagation:
    """`result` with these gradients, in its own format, in the place of its own."""
    return replace(result, gradients={name: g.to(result.gradients[name], copy=True) for name, g in gradients.items()})


def values_of(state: LearnerState) -> dict[str, Tensor]:
    """Parameters and buffers by their names, `memory h`, and the optimizer's tensors as `velocity of layer1.weight`."""
    memory = {f"memory {name}": tensor for name, tensor in _floating(state["memory"]).items()}
    optimizer = {f"{key} of {name}": t for key, named in state["optimizer"].items() for name, t in named.items()}
    return _floating(state["model"]) | memory | optimizer


def tensors_of(result: Backpropagation) -> dict[str, Tensor]:
    """All that was computed, causes before effects: `z layer1`, `a layer1`, `loss`, `δ layer1`, `dlayer1.weight`, ….

    These are check_step's names. What comes back to an activation is `∂C/∂a layer1`.
    """
    named = {_named(name, "z", "a"): tensor for name, tensor in result.outputs.items()}
    named["loss"] = result.loss
    named |= {_named(name, "δ", "∂C/∂a"): delta for name, delta in result.deltas.items()}
    named |= {f"d{name}": gradient for name, gradient in reversed(list(result.gradients.items()))}
    named |= {f"buffer {name}": tensor for name, tensor in _floating(result.buffers).items()}
    return named | {f"memory {name}": tensor for name, tensor in _floating(result.memory).items()}


def _named(call: str, kind: str, of_activation: str) -> str:
    return f"{of_activation} {call.removesuffix('.a')}" if call.endswith(".a") else f"{kind} {call}"


def describe(name: str, result: Backpropagation) -> str:
    """A name of `tensors_of` with its equation: "BP4, layer 2, ∂C/∂W". `result` is the hand-written learner's."""
    kind, _, call = name.partition(" ")
    if name == "loss":
        return "the cost C"
    if name == "δ output":
        return "∂C/∂output"
    if not call:
        layer, _, part = name.removeprefix("d").rpartition(".")
        label, symbol = result.equations.get(name.removeprefix("d"), ("", ""))
        symbol = SYMBOLS.get(symbol, symbol) or {"weight": "W", "bias": "b"}.get(part, part)
        return _joined(label, _spaced(layer), f"∂C/∂{symbol}")
    if kind == "buffer":
        layer, _, part = call.rpartition(".")
        return _joined(_spaced(layer), part)
    deltas = {"δ": call, "∂C/∂a": f"{call}.a"}
    return _joined(result.labels.get(deltas.get(kind, ""), ""), _spaced(call), kind)


def in_words(name: str) -> str:
    """A name of `tensors_of` in a sentence: "z of layer1", "C", "∂C/∂layer1.weight"."""
    if name == "loss":
        return "C"
    return name.replace(" ", " of ") if " " in name else f"∂C/∂{name.removeprefix('d')}"


def _spaced(layer: str) -> str:
    """ "stage 1 block 2" for stage1.block2"""
    return re.sub(r"([a-z])(\d+)", r"\1 \2", layer).replace(".", " ")


def _joined(*parts: str) -> str:
    return ", ".join(filter(None, parts))


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
    sizes: Mapping[str, float],
) -> tuple[dict[str, float], dict[str, float]]:
    """How far one unit of rounding moves each tensor of `result`, in units of rounding of its norm, or of its `sizes`.

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
        norm = sizes.get(name, 0.0) or tensor.double().norm().item()
        if norm:
            conditions[name] = max(1.0, moved[name] / (epsilon * norm))
        elif moved[name]:
            floors[name] = moved[name] / epsilon
    return conditions, floors


def _floating(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}


def _finite(tensors: Mapping[str, Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors.values())
