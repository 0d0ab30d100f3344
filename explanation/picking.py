"""Which example of the test set has something to say, where nobody names one."""

from collections.abc import Callable

import torch
from torch import Tensor

from explanation.numbers import Network
from training.data import Dataset
from training.errors import UserError
from training.evaluation import BLOCK, confidence
from training.prediction import Trained


def costly(trained: Trained, data: Dataset, name: str) -> tuple[int, str]:
    """The example with the highest cost, and why it was picked; `name` is what all of them are called."""
    network = Network(trained)
    costs = torch.cat([network.costs(*block) for block in _blocks(data)])
    reason = f"its cost is the highest of all {len(costs):,} {name}s (their median is {costs.median():.2g})"
    return int(costs.argmax()), reason


def undecided(trained: Trained, data: Dataset, name: str) -> tuple[int, str]:
    """The example for which a second class has much, and hardly less than the first; and the two classes."""
    classes, network = trained.data.classes, Network(trained)
    if len(classes) < 2:
        raise UserError("there is one class only, and nothing to be undecided about: leave out --pick")
    values = torch.cat([confidence(network.outputs(x), trained.config.loss)[0] for x, _ in _blocks(data)])
    best, which = values.topk(2)
    index = int((2 * best[:, 1] - best[:, 0]).argmax())
    first, second = (f"{best[index, i]:.3g} for {classes[int(which[index, i])]}" for i in (0, 1))
    return index, f"the network is the least decided about it of all {len(values):,} {name}s ({first}, {second})"


PICKS: dict[str, Callable[[Trained, Dataset, str], tuple[int, str]]] = {"costly": costly, "undecided": undecided}


def _blocks(data: Dataset) -> list[tuple[Tensor, Tensor]]:
    every = torch.arange(len(data.test))
    return [data.test.batch(indices, torch.float64) for indices in every.split(BLOCK)]
