"""The same example before the first step of the training, beside what it has become."""

from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from explanation.numbers import Explanation
from training.checkpoint import FIRST
from training.prediction import Trained, load_trained


@dataclass(frozen=True, eq=False)
class Moment:
    """What one state of the network makes of the example. `agreement` is the mean cosine of the others' gradients."""

    steps: int
    output: Tensor  # (n,), aᴸ
    cost: float
    gradient: float  # the length of the example's own
    deltas: tuple[float, ...]  # root mean squares of δ, layer by layer
    agreement: float


def moment(e: Explanation) -> Moment:
    deltas = tuple(layer.delta.square().mean().sqrt().item() for layer in e.layers)
    length, agreement = e.batch.gradients[0].norm().item(), e.batch.agreement[1:].mean().item()
    return Moment(e.trained.learner.steps, e.output, e.cost, length, deltas, agreement)


def untrained(trained: Trained, checkpoint: Path) -> Trained | None:
    """The network before its first step, if the run kept it; `checkpoint` is the run's directory, or a file in it."""
    path = (checkpoint if checkpoint.is_dir() else checkpoint.parent) / FIRST
    if trained.learner.steps == 0 or not path.is_file():
        return None
    first = load_trained(path)
    config = replace(first.config, epochs=trained.config.epochs, max_steps=trained.config.max_steps)
    return first if config == trained.config else None  # a file of another run may lie there
