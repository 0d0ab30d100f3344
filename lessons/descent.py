"""Gradient descent one step at a time, for lessons that look at the network between the steps."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from training.batches import epoch_order
from training.learners.manual import ManualLearner


def descend(learner: ManualLearner, batch_size: int, lr: float, epochs: int, seed: int) -> Iterator[int]:
    """θ ← θ − η ∇C_batch over shuffled epochs of the training examples.

    Yields how many steps were taken: 0 before the first, and after each.
    """
    rate = torch.tensor([lr], dtype=torch.float64)
    yield learner.steps
    for epoch in range(epochs):
        for batch in epoch_order(seed, epoch, len(learner.train)).split(batch_size):
            learner.advance(batch.unsqueeze(0), rate)
            yield learner.steps
