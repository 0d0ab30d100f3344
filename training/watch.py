"""A run that does not learn: how it shows, and what to try."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from math import inf, sqrt

import torch
from torch import Tensor

from manual_backprop.schedules import RISE
from training import defaults
from training.config import Config, flag
from training.data import Dataset
from training.evaluation import Evaluation

Activations = Callable[[Tensor], Mapping[str, Tensor]]

EXAMPLES = 100  # whose activations are looked at
SOONEST, SHARE = 100, 0.1  # steps, and part of the run, before which nothing is said, unless the run ends there
SHORTEST = 20  # steps of a run of which anything can be said
LONG = 1000  # steps in which a network that learns shows it
RISES = 3  # evaluations in a row with a higher cost than before


class Watch:
    """Looks at every evaluation of a run, and says once that the run does not learn, if it does not.

    `state` is a checkpoint's; it is brought up to date in place.
    """

    def __init__(self, config: Config, data: Dataset, total: int, state: dict[str, float]) -> None:
        self.config, self.data, self.total, self.state = config, data, total, state

    def __call__(
        self,
        step: int,
        on_train: Evaluation,
        on_test: Evaluation,
        activations: Activations,
    ) -> str:
        """One sentence, or nothing. `activations` gives every a for inputs x, as a learner's does."""
        rises = self._rises(on_train)
        rising = RISE * self.total if self.config.schedule == "one-cycle" else self.config.warmup
        soonest = max(SHORTEST, min(self.total, max(SOONEST, SHARE * self.total) + rising))
        if self.state.get("told") or step < soonest:
            return ""
        dead = self._dead(activations)
        seen = [text for text in (self._chance(on_test), rises, dead and f"{dead} outputs 0 for every example") if text]
        if not seen:
            return ""
        self.state["told"] = 1
        return f"this run does not learn: {', and '.join(seen)}; try {advice(self.config, step)}"

    def _chance(self, on_test: Evaluation) -> str:
        """Whether the accuracy is what the commonest class alone would give, as far as so many examples can tell."""
        counts = self.data.test.y.bincount(minlength=len(self.data.classes))
        chance, n = counts.max().item() / len(self.data.test), len(self.data.test)
        if len(self.data.classes) < 2 or on_test.accuracy > chance + 2 * sqrt(chance * (1 - chance) / n):
            return ""
        commonest = self.data.classes[int(counts.argmax())]
        return (
            f"the test accuracy is {on_test.accuracy:.2%}, no better than always answering {commonest} ({chance:.2%})"
        )

    def _rises(self, on_train: Evaluation) -> str:
        """Whether the cost of the training examples is higher than before the first step, or keeps rising."""
        state, loss = self.state, on_train.loss
        first, lowest = state.setdefault("first", loss), state.get("lowest", inf)
        state["rises"] = state.get("rises", 0) + 1 if loss > state.get("previous", inf) else 0
        state["previous"], state["lowest"] = loss, min(loss, lowest)
        state["best"] = max(state.get("best", 0.0), on_train.accuracy)
        if loss > 1.01 * first:
            return f"the cost of the training examples has risen from {first:.3g} to {loss:.3g}"
        if state["rises"] >= RISES and loss > 1.5 * lowest and on_train.accuracy < state["best"] - 0.01:
            return f"the cost of the training examples rises: it was {lowest:.3g}, and is {loss:.3g}"
        return ""

    def _dead(self, activations: Activations) -> str:
        """The first hidden layer whose neurons output 0 whatever the example: no gradient passes through it."""
        train = self.data.train
        indices = torch.arange(min(EXAMPLES, len(train)), device=train.x.device)
        x, _ = train.batch(indices, getattr(torch, self.config.dtype))
        *hidden, _ = activations(x).items()
        return next((f"every neuron of {name}" for name, a in hidden if not a.any()), "")


def advice(config: Config, steps: int) -> str:
    """Which settings suit such a network better, after so many steps; where all do, what else may help."""
    values = asdict(config)
    for_this_cost = defaults.fill(values, ["loss", "l2"])
    better = [
        f"{flag(name)} {wanted} (it is {now})"
        for name in ("lr", "init")
        if (wanted := f"{for_this_cost[name]}") != (now := f"{values[name]}")
    ]
    if not better:
        better = [f"a smaller {flag(name)} (it is {values[name]})" for name in ("l2", "l1", "dropout") if values[name]]
    hidden = defaults.hidden_activations(values)
    cost = defaults.loss({**values, "activation": hidden[:1]})
    if cost != config.loss and len(set(hidden)) == 1:
        better.append(f"{flag('loss')} {cost}")
    better = better or ["another --lr, --loss or --optimizer", "--activation relu", "fewer layers"]
    return ", ".join(better + ["more --epochs"] * (steps < LONG))
