"""Manual and reference in lock step: the proof on every step, or on every N-th."""

import re
from collections.abc import Mapping, Sequence
from math import sqrt

import torch
from torch import Tensor

from gradient_check import Report, compare_gradients
from training.learners.base import Backpropagation, LearnerState
from training.learners.manual import ManualLearner
from training.learners.reference import ReferenceLearner
from training.step import Model


class GradientMismatch(Exception):
    """Manual and reference differ by more than the tolerance: at which step, in which equation, layer and tensor."""

    def __init__(self, step: int, report: Report) -> None:
        first = report.failures[0]
        super().__init__(f"step {step}: {first.label}: {first.reason}")
        self.step, self.report = step, report


class CheckedLearner:
    """Trains by hand; every `every`-th step is taken by the reference too, from the same θ, and compared.

    Compared are the cost, every z, a, δ and gradient, and the parameters and buffers after the step. Before a checked
    step the reference takes over the manual state, because two right implementations left to drift apart do so by
    chaos. Below float64 a second reference, `truth`, takes the step in float64 on the same rounded inputs, and both are
    judged against it. `zeros` names the gradients that are zero in exact arithmetic (a bias before batch norm), each
    with the δs whose elements cancel in it.
    """

    def __init__(
        self,
        manual: ManualLearner,
        reference: ReferenceLearner,
        truth: ReferenceLearner | None = None,
        every: int = 1,
        zeros: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.manual, self.every, self.zeros = manual, every, zeros or {}
        self.others: list[ReferenceLearner] = [reference] if truth is None else [reference, truth]
        self.max_relative_error = 0.0  # of all checks since the reader last set it to zero

    @property
    def steps(self) -> int:
        return self.manual.steps

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        return self.manual.parameters

    def advance(self, batches: Tensor, learning_rates: Tensor) -> Tensor:
        """As for every learner. Raises GradientMismatch at the first step that differs, before that step is taken."""
        losses = []
        for indices, lr in zip(batches, learning_rates, strict=True):
            if (self.steps + 1) % self.every == 0:
                losses.append(self._checked_step(indices, lr))
            else:
                losses.append(self.manual.advance(indices.unsqueeze(0), lr.unsqueeze(0))[0])
        return torch.stack(losses)

    def _checked_step(self, indices: Tensor, lr: Tensor) -> Tensor:
        step = self.steps + 1
        before = self.manual.state_dict()
        x, y = self.manual.train.batch(indices.to(self.manual.device), self.manual.dtype)
        mine = self.manual.backpropagate(x, y)
        theirs = []
        for learner in self.others:
            learner.load_state_dict(before)
            theirs.append(learner.backpropagate(x.to(learner.dtype), y))
        named = [tensors_of(result) for result in (mine, *theirs)]
        labels = {name: describe(name, self.manual.model) for name in named[0]}
        summands = {
            name: sum(mine.deltas[delta].norm().item() for delta in deltas) for name, deltas in self.zeros.items()
        }
        self._compare(step, named, labels, condition(mine), {f"∂C/∂ {name}": size for name, size in summands.items()})

        loss = mine.loss.clone()
        self.manual.apply(mine, lr)
        for learner, result in zip(self.others, theirs, strict=True):
            learner.apply(result, lr)
        models = [self.manual.state_dict()["model"], *(learner.state_dict()["model"] for learner in self.others)]
        after = [_floating(model) for model in models]
        moved = {name: before["model"][name].norm().item() + lr.item() * size for name, size in summands.items()}
        try:
            self._compare(step, after, {name: f"the step's new {name}" for name in after[0]}, zeros=moved)
        except GradientMismatch:
            self.manual.load_state_dict(before)
            raise
        return loss

    def _compare(
        self,
        step: int,
        named: list[dict[str, Tensor]],
        labels: dict[str, str],
        condition: float = 1.0,
        zeros: Mapping[str, float] | None = None,
    ) -> None:
        actual, expected, *truth = named
        if not _finite(actual) and not _finite(expected):
            return  # both have left the numbers: the training loop stops there and names the place
        in_order = {name: expected[name] for name in actual if name in expected} | expected
        report = compare_gradients(
            actual, in_order, truth=truth[0] if truth else None, labels=labels, condition=condition, zeros=zeros
        )
        if not report.passed:
            raise GradientMismatch(step, report)
        self.max_relative_error = max(self.max_relative_error, report.max_relative_error)

    def backpropagate(self, x: Tensor, y: Tensor) -> Backpropagation:
        return self.manual.backpropagate(x, y)

    def evaluate(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.manual.evaluate(x, y)

    def state_dict(self) -> LearnerState:
        return self.manual.state_dict()

    def load_state_dict(self, state: LearnerState) -> None:
        self.manual.load_state_dict(state)


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


def _floating(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}


def _finite(tensors: Mapping[str, Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors.values())
