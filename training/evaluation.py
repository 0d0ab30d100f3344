"""How good a learner is on a set of examples."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from training.data import Split
from training.learners.base import Learner

BLOCK = 2000  # examples at a time


@dataclass(frozen=True)
class Evaluation:
    loss: float  # mean cost of an example, without the L2 penalty
    accuracy: float  # part of the examples whose largest output is their class's, from 0 to 1
    outputs: Tensor  # (N, classes), on the CPU


def evaluate(
    learner: Learner, split: Split, dtype: torch.dtype, stop: Callable[[], bool] = lambda: False
) -> Evaluation | None:
    """Evaluate on all of `split`, block by block; None if `stop()` became true in between."""
    total, outputs = 0.0, []
    for indices in torch.arange(len(split), device=split.x.device).split(BLOCK):
        if stop():
            return None
        loss, output = learner.evaluate(*split.batch(indices, dtype))
        total += loss.item()
        outputs.append(output)
    output = torch.cat(outputs)
    accuracy = (output.argmax(dim=1) == split.y).cpu().double().mean().item()
    return Evaluation(total / len(split), accuracy, output.cpu())


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
