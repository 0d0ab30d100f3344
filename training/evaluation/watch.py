"""A run that does not learn: how it shows, and what to try."""

from collections.abc import Callable, Mapping
from math import inf, sqrt

import torch
from torch import Tensor

from manual_backprop.schedules import RISE
from training.config import Config
from training.data import Dataset
from training.evaluation import Evaluation
from training.families.advice import advice, general_advice
from training.tasks import CLASSIFICATION, task_of

Activations = Callable[[Tensor], Mapping[str, Tensor]]

EXAMPLES = 100  # whose activations are looked at
SOONEST, SHARE = 100, 0.1  # steps, and part of the run, before which nothing is said, unless the run ends there
SHORTEST = 20  # steps of a run of which anything can be said
IN_A_ROW, LASTING = 2, 0.02  # evaluations that must look bad, and the part of the run that they must cover
RISES = 3  # evaluations, each with a higher cost than the one before


class Watch:
    """Looks at every evaluation of a run, and says once that the run does not learn, if it does not.

    `state` is a checkpoint's; it is brought up to date in place.
    """

    def __init__(self, config: Config, data: Dataset, total: int, state: dict[str, float]) -> None:
        self.config, self.data, self.total, self.state = config, data, total, state
        self.classifies = task_of(data) is CLASSIFICATION  # of other tasks only the cost is looked at

    def __call__(self, step: int, on_train: Evaluation, activations: Activations) -> str:
        """One sentence, or nothing. `activations` gives every a for inputs x, as a learner's does."""
        seen = [text for text in (self._chance(on_train), self._cost(step, on_train)) if text]
        rising = RISE * self.total if self.config.schedule == "one-cycle" else self.config.warmup
        soonest = max(SHORTEST, min(self.total, max(SOONEST, SHARE * self.total) + rising))
        if self.state.get("told") or step < soonest:
            return ""
        if not seen:
            self.state["bad"] = 0
            return ""
        if not self.state.get("bad"):
            self.state["since"] = step
        self.state["bad"] = self.state.get("bad", 0) + 1
        lasting = step - self.state.get("since", step) >= LASTING * self.total
        if step < self.total and not (self.state["bad"] >= IN_A_ROW and lasting):
            return ""
        self.state["told"] = 1
        if dead := self._dead(activations):
            seen.append(dead)
        tips = advice(self.config, self.total) if self.classifies else general_advice(self.config, self.total)
        return f"this run does not learn so far: {'; '.join(seen)}. Try {tips}"

    def _chance(self, on_train: Evaluation) -> str:
        """Whether the accuracy is what the commonest class alone would give, as far as so many examples can tell."""
        if not self.classifies:
            return ""
        y, classes, accuracy = on_train.labels, self.data.classes, on_train.values["accuracy"]
        counts = y.bincount(minlength=len(classes))
        chance = counts.max().item() / len(y)
        threshold = min(chance + 2 * sqrt(chance * (1 - chance) / len(y)), (1 + chance) / 2)
        if len(classes) < 2 or accuracy > threshold:
            return ""
        commonest = classes[int(counts.argmax())]
        return (
            f"it classifies {accuracy:.2%} of the training examples correctly, and always answering "
            f"{commonest} would be right for {chance:.2%}"
        )

    def _cost(self, step: int, on_train: Evaluation) -> str:
        """Whether the cost of the training examples is no lower than before the first step, or keeps rising."""
        state, loss = self.state, on_train.loss
        if step == 0:
            state["first"] = loss
        first, lowest = state.get("first", inf), state.get("lowest", inf)
        state["rises"] = state.get("rises", 0) + 1 if loss > state.get("previous", inf) else 0
        state["previous"], state["lowest"] = loss, min(loss, lowest)
        accuracy = on_train.values.get("accuracy", 0.0)
        state["best"] = max(state.get("best", 0.0), accuracy)
        worse = accuracy < state["best"] - 0.01 or not self.classifies
        if loss > 1.01 * first:
            return f"the cost of the training examples has risen from {first:.3g} to {loss:.3g}"
        if 0.99 * first < loss < inf:
            return f"the cost of the training examples has hardly moved from {first:.3g}"
        if state["rises"] >= RISES and loss > 1.5 * lowest and worse:
            return f"the cost of the training examples rises: it was {lowest:.3g}, and is {loss:.3g}"
        return ""

    def _dead(self, activations: Activations) -> str:
        """The first hidden layer whose neurons output 0 whatever the example: no gradient passes through it."""
        if not self.classifies:
            return ""
        train = self.data.train
        count = min(EXAMPLES, len(train))
        indices = torch.linspace(0, len(train) - 1, count, dtype=torch.float64).long()  # also where classes are sorted
        x, _ = train.batch(indices.to(train.device), getattr(torch, self.config.dtype))
        *hidden, _ = activations(x).items()
        dead = [name for name, a in hidden if not a.any()]
        return f"every neuron of {dead[0]} outputs 0 for each of {count} examples" if dead else ""
