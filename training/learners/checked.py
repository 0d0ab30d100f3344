"""Manual and reference in lock step: the proof on every step, or on every N-th."""

from collections.abc import Mapping

import torch
from torch import Tensor

from gradient_check import Report
from training.families.model import Buffers
from training.learners.base import NOTHING, Backpropagation, Evaluated, LearnerState
from training.learners.comparison import compare_passes, compare_steps
from training.learners.manual import ManualLearner
from training.learners.proof import Proof
from training.learners.reference import ReferenceLearner

MAX_ERROR = "gradient_check/max_relative_error"


class GradientMismatch(Exception):
    """Manual and reference differ by more than the tolerance: at which step, in which equation, layer and tensor."""

    def __init__(self, step: int, report: Report) -> None:
        first = report.failures[0]
        super().__init__(f"step {step}: {first.label}: {first.cause}")
        self.step, self.report = step, report


class CheckedLearner:
    """Trains by hand; every `every`-th step is taken by the reference too, from the same θ, and compared.

    Compared are the cost, every layer call's output and δ, every gradient, and after the step the parameters, the
    buffers, the memory and the optimizer's state. Before a checked step the reference takes over the manual state, and
    for the step the manual gradient, because two right implementations left to drift apart do so by chaos. Below
    float64 a second reference, `truth`, takes the step in float64 on the same rounded inputs, and both are judged
    against it.
    """

    def __init__(
        self,
        manual: ManualLearner,
        reference: ReferenceLearner,
        truth: ReferenceLearner | None = None,
        every: int = 1,
    ) -> None:
        self.manual, self.every = manual, every
        self.proof = Proof(every)
        self.others: list[ReferenceLearner] = [reference] if truth is None else [reference, truth]
        self.metrics: dict[str, float] = {}  # MAX_ERROR: of all checks since it was last logged

    @property
    def device(self) -> torch.device:
        return self.manual.device

    @property
    def steps(self) -> int:
        return self.manual.steps

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        return self.manual.parameters

    @property
    def buffers(self) -> Mapping[str, Tensor]:
        return self.manual.buffers

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
        x, y = self.batch(indices.to(self.manual.device))
        for learner in self.others:
            learner.load_state_dict(before)
        passes = compare_passes(self.manual, self.others, x, y)
        self._require(step, passes.report)

        loss = passes.manual.loss.clone()
        report = compare_steps(self.manual, self.others, passes, lr)
        if not report.passed:
            self.manual.load_state_dict(before)
        self._require(step, report)
        self.proof.add(passes.report, report)
        return loss

    def _require(self, step: int, report: Report) -> None:
        if not report.passed:
            raise GradientMismatch(step, report)
        self.metrics[MAX_ERROR] = max(self.metrics.get(MAX_ERROR, 0.0), report.max_relative_error)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.manual.batch(indices)

    def backpropagate(self, x: Tensor, y: Tensor) -> Backpropagation:
        return self.manual.backpropagate(x, y)

    def evaluate(self, x: Tensor, y: Tensor, memory: Buffers = NOTHING) -> Evaluated:
        return self.manual.evaluate(x, y, memory)

    def forward(self, x: Tensor, memory: Buffers) -> tuple[Tensor, Buffers]:
        return self.manual.forward(x, memory)

    def outputs(self, x: Tensor) -> Tensor:
        return self.manual.outputs(x)

    def activations(self, x: Tensor) -> Mapping[str, Tensor]:
        return self.manual.activations(x)

    def forget(self) -> None:
        self.manual.forget()

    def is_finite(self) -> bool:
        return self.manual.is_finite()

    def state_dict(self) -> LearnerState:
        return self.manual.state_dict()

    def load_state_dict(self, state: LearnerState) -> None:
        self.manual.load_state_dict(state)
