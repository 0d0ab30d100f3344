"""How good a learner is on a set of examples."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from training.data import Examples
from training.families.model import Buffers
from training.learners.base import NOTHING, Learner
from training.tasks import CLASSIFICATION, Sums, Task

BLOCK = 2000  # targets at a time


@dataclass(frozen=True)
class Evaluation:
    values: Mapping[str, float]  # the task's metrics by name
    outputs: Tensor  # (targets, classes), on the CPU; empty where the task keeps none
    labels: Tensor  # (targets,), on the CPU; empty where the task keeps none

    @property
    def loss(self) -> float:
        """Mean cost of a target, without penalties."""
        return self.values["loss"]


def evaluate(
    learner: Learner,
    examples: Examples,
    dtype: torch.dtype,
    stop: Callable[[], bool] = lambda: False,
    task: Task = CLASSIFICATION,
) -> Evaluation | None:
    """Evaluate on all examples, block by block; None if `stop()` became true in between.

    Where examples carry, what the model hands on goes from each block to the next one.
    """
    cost, correct = 0.0, 0
    outputs: list[Tensor] = []
    labels: list[Tensor] = []
    memory: Buffers = NOTHING
    for indices in examples.blocks(examples_of(BLOCK, examples)):
        if stop():
            return None
        x, y = examples.batch(indices, dtype)
        ongoing = {name: tensor[: len(indices)] for name, tensor in memory.items()} if examples.carries else NOTHING
        loss, output, memory = learner.evaluate(x, y, ongoing)
        cost += loss.item()
        correct += int((output.argmax(dim=1) == y).sum())
        if task.keeps_outputs:
            outputs.append(output.cpu())
            labels.append(y.cpu())
    sums = Sums(cost, correct, len(examples) * examples.targets)
    if not task.keeps_outputs:
        return Evaluation(task.evaluate(sums), torch.empty(0), torch.empty(0, dtype=torch.int64))
    return Evaluation(task.evaluate(sums), torch.cat(outputs), torch.cat(labels))


def examples_of(targets: int, examples: Examples) -> int:
    """How many examples have about so many targets; one at least."""
    return max(1, targets // examples.targets)


def confidence(outputs: Tensor, loss: str) -> tuple[Tensor, str]:
    """What the network gives each class, from its outputs (B, classes), and what that is called.

    The softmax or sigmoid that is a part of the cost makes probabilities of logits; the other costs have activations.
    """
    outputs = outputs.double()
    if loss == "softmax-cross-entropy":
        return outputs.softmax(dim=1), "probability"
    if loss == "sigmoid-cross-entropy":
        return outputs.sigmoid(), "probability"
    return outputs, "activation"
