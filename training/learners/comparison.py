"""One forward and backward pass of the hand-written model and of its twin, compared tensor by tensor."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from gradient_check import Report, compare_gradients
from training.learners.base import Backpropagation
from training.learners.manual import ManualLearner
from training.learners.reference import ReferenceLearner
from training.step import Model


@dataclass(frozen=True)
class Passes:
    """What each learner computed, the verdict on it, and what the verdict on the step to be taken needs."""

    manual: Backpropagation
    others: list[Backpropagation]
    report: Report
    conditions: Mapping[str, float]  # by names of `tensors_of`
    summands: Mapping[str, float]  # of the gradients that are zero in exact arithmetic, by parameter


def compare_passes(
    manual: ManualLearner,
    others: Sequence[ReferenceLearner],
    x: Tensor,
    y: Tensor,
    zeros: Mapping[str, Sequence[str]] | None = None,
) -> Passes:
    """Compare the cost, every z, a, δ and gradient, and the new buffers of learners that are at the same θ.

    `others` is the reference and, below float64, a reference in float64 that is the truth. ∂C/∂output is a difference
    that may be all rounding (`condition`): it is compared by itself, and then all propagate the manual one back. Where
    a gradient still differs, it may be a sum that cancels; then the size of its summands is measured (`cancellation`).
    `zeros` maps the gradients that are zero in exact arithmetic to the δs whose elements cancel in them.
    """
    mine = manual.backpropagate(x, y)
    d_output = mine.deltas["output"].clone()
    theirs = [learner.backpropagate(x.to(learner.dtype), y, d_output.to(learner.dtype)) for learner in others]
    named = [tensors_of(result) for result in (mine, *theirs)]
    labels = {name: describe(name, manual.model) for name in named[0]}
    summands = {name: sum(mine.deltas[d].norm().item() for d in deltas) for name, deltas in (zeros or {}).items()}
    sizes = {f"∂C/∂ {name}": size for name, size in summands.items()}
    conditions = dict.fromkeys(("C", "δ output"), condition(mine))
    report = _compare(named, labels, conditions, sizes)
    if not report.passed:
        conditions |= cancellation(theirs[0], others[0].backpropagate(x, y, scrambled(d_output)))
        report = _compare(named, labels, conditions, sizes)
    return Passes(mine, theirs, report, conditions, summands)


def compare_models(
    before: Mapping[str, Tensor], models: Sequence[Mapping[str, Tensor]], lr: float, passes: Passes
) -> Report:
    """Compare the parameters and buffers after the step that `passes` called for; `before` are those before it."""
    after = [_floating(model) for model in models]
    labels = {name: f"the step's new {name}" for name in after[0]}
    conditions = {name: passes.conditions.get(f"∂C/∂ {name}", 1.0) for name in after[0]}
    moved = {name: before[name].norm().item() + lr * size for name, size in passes.summands.items()}
    return _compare(after, labels, conditions, moved)


def tensors_of(result: Backpropagation) -> dict[str, Tensor]:
    """All that was computed, as `z layer1`, `δ layer1`, `∂C/∂ layer1.weight` and so on, causes before effects."""
    named = {}
    for name, z in result.z.items():
        named[f"z {name}"] = z
        if name in result.activations:
            named[f"a {name}"] = result.activations[name]
    named["C"] = result.loss
    named |= {f"δ {name}": delta for name, delta in result.deltas.items()}
    named |= {f"∂C/∂ {name}": gradient for name, gradient in reversed(list(result.gradients.items()))}
    return named | {f"buffer {name}": tensor for name, tensor in _floating(result.buffers).items()}


def describe(name: str, model: Model) -> str:
    """A name of `tensors_of` with its equation: "BP4, layer 2, ∂C/∂W"."""
    kind, _, tensor = name.partition(" ")
    if not tensor:
        return "the cost C"
    if tensor == "output":
        return "∂C/∂output"
    layer, _, parameter = tensor.partition(".") if kind == "∂C/∂" else (tensor, "", "")
    place = re.sub(r"([a-z])(\d+)$", r"\1 \2", layer)
    if kind == "∂C/∂":
        return f"{model.equation(tensor)}, {place}, ∂C/∂{ {'weight': 'W', 'bias': 'b'}.get(parameter, parameter) }"
    return f"{model.equation(tensor)}, {place}, δ" if kind == "δ" else f"{place}, {kind}"


def condition(result: Backpropagation) -> float:
    """How much smaller ∂C/∂output is than the two vectors, of length 1 per example, whose difference it is.

    Every cost's gradient is (something − y) / B: once the network is sure and right, only rounding is left of it.
    """
    d_output = result.deltas["output"]
    size = 2 / sqrt(len(d_output))
    norm = d_output.norm().item()
    limit = 1 / torch.finfo(d_output.dtype).eps
    return min(max(size / norm, 1.0), limit) if norm else limit


def scrambled(d_output: Tensor) -> Tensor:
    """The same elements with signs drawn at random."""
    generator = torch.Generator().manual_seed(0)
    return d_output * (2 * torch.randint(0, 2, d_output.shape, generator=generator) - 1).to(d_output)


def cancellation(result: Backpropagation, uncancelled: Backpropagation) -> dict[str, float]:
    """How much smaller each δ and gradient is than one of the same summands in which nothing cancels by design.

    At a minimum the examples' gradients sum to nothing, and rounding is all that is left of the sum.
    """
    conditions = {}
    named = tensors_of(uncancelled)
    for name, tensor in tensors_of(result).items():
        if name.startswith(("δ", "∂C/∂")) and name != "δ output":
            norm, size = tensor.norm().item(), named[name].norm().item()
            conditions[name] = max(size / norm, 1.0) if norm else 1.0
    return conditions


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
        actual, in_order, truth=truth[0] if truth else None, labels=labels, condition=conditions, zeros=zeros
    )


def _floating(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}


def _finite(tensors: Mapping[str, Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors.values())
