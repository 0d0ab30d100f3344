"""Gradient descent one step at a time, for lessons that look at the network between the steps."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from training.learners.manual import ManualLearner


def descend(learner: ManualLearner, batch_size: int, lr: float, epochs: int, seed: int) -> Iterator[int]:
    """θ ← θ − η ∇C_batch over shuffled epochs of the training examples, from where the learner is.

    Yields how many steps were taken in all: before the first of these, and after each.
    """
    rate = torch.tensor([lr], dtype=torch.float64)
    per_epoch = learner.train.steps(batch_size)
    yield learner.steps
    for epoch in range(learner.steps // per_epoch, epochs):
        order = learner.train.order(seed, epoch, batch_size)
        for batch in order.split(batch_size)[learner.steps - epoch * per_epoch :]:
            learner.advance(batch.unsqueeze(0), rate)
            yield learner.steps
