"""Gradients without backpropagation: a value is really moved, and the cost computed again by a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lessons.descent import descend
from lessons.runs import first, learner
from manual_backprop.losses import one_hot
from manual_backprop.tape import Tape
from training.data import Dataset
from training.families.configure import configure
from training.families.model import Model
from training.learners.manual import ManualLearner

STEP = 1e-5  # of a central difference: its own error is about STEP² = 1e-10
RATE, BATCH = 3.0, 100  # η of training, and examples a step
AGREE = 1e-7  # relative error up to which a gradient is what wiggling finds


def distance(actual: Tensor, expected: Tensor) -> float:
    """‖actual − expected‖ / ‖expected‖"""
    return ((actual - expected).norm() / expected.norm()).item()


def wiggle(cost: Callable[[Tensor], Tensor], v: Tensor, at: Tensor | None = None) -> Tensor:
    """∂C/∂vₖ by central differences, (C(v + h eₖ) − C(v − h eₖ)) / 2h: no backpropagation.

    For the values at these positions of the flattened v, or for all. A cost of B values gives (positions, B).
    """
    slopes = []
    for k in range(v.numel()) if at is None else at.tolist():
        h = torch.zeros_like(v)
        h.view(-1)[k] = STEP
        slopes.append((cost(v + h) - cost(v - h)) / (2 * STEP))
    return torch.stack(slopes)


def outputs(model: Model, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """aᴸ of every example of x at these parameters: a forward pass that no backward pass follows."""
    return model.forward(params, x, Tape(records=False))


def new_network(data: Dataset, seed: int) -> ManualLearner:
    """3Blue1Brown's 784-16-16-10 sigmoids, untrained, with their cost C = ‖a − y‖² and the first 10,000 examples."""
    config = configure(hidden=(16, 16), activation=("sigmoid",), loss="squared-error", dtype="float64", seed=seed)
    return learner(config, first(data, 10_000, 2_000))


def train_to(network: ManualLearner, steps: int, seed: int) -> None:
    """Go on training, as train.py does with --lr 3 --schedule constant, until so many steps were taken in all."""
    epochs = -(-steps // network.train.steps(BATCH))
    for step in descend(network, BATCH, RATE, epochs, seed):
        if step >= steps:
            break


def costs(network: ManualLearner, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """(B,): ‖a − y‖² of every example at θ, by a forward pass; the cost of the batch is their mean."""
    output = outputs(network.model, network.params.split(theta), x)
    return (output - one_hot(y, output)).square().sum(dim=1)


def gradient(network: ManualLearner, x: Tensor, y: Tensor) -> Tensor:
    """∇C of these examples at the network's θ, as one vector: by backpropagation."""
    network.backpropagate(x, y)
    return network.gradients.theta.clone()
