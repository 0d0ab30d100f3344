"""A text, and the smallest learner of it: a table of logits by the id before, for what the loop does with any text."""

import weakref
from typing import Any

import torch
from torch import Tensor

from training.data import Dataset, Streams
from training.learners.base import Backpropagation
from training.tasks import NEXT_TOKEN

VOCABULARY = 5


def text_data(train: int = 200, test: int = 90, context: int = 4, carries: bool = True) -> Dataset:
    """Ids of which each but every seventh is the one before plus one."""
    ids = (torch.arange(train + test) + torch.arange(train + test) // 7) % VOCABULARY
    parts = (Streams(ids[:train], context, carries), Streams(ids[train:], context, carries))
    return Dataset("npz", *parts, (context,), tuple("abcde"), "a text", task=NEXT_TOKEN.name)


class Bigram:
    """Learns W (V, V), whose row is the logits of what follows, and carries the last id of each stream."""

    def __init__(self, data: Dataset) -> None:
        self.train, self.W, self.steps = data.train, torch.zeros(VOCABULARY, VOCABULARY, dtype=torch.float64), 0
        self.metrics: dict[str, float] = {}
        self.proof = None
        self.memory: Tensor | None = None
        self.forgot: list[int] = []  # after which steps
        self.begun_with: list[Tensor | None] = []  # the memory of each step, as it began
        self.largest = 0  # rows of outputs that were asked for at once
        self.given: list[weakref.ref[Tensor]] = []  # outputs of evaluations

    @property
    def parameters(self) -> dict[str, Tensor]:
        return {"table": self.W}

    @property
    def buffers(self) -> dict[str, Tensor]:
        return {}

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.train.batch(indices, torch.float64)

    def backpropagate(self, x: Tensor, y: Tensor) -> Backpropagation:
        W = self.W.clone().requires_grad_()
        loss = torch.nn.functional.cross_entropy(W[x.flatten()], y)
        loss.backward()
        named = {"table": W.grad}
        return Backpropagation(loss.detach(), named, named, named, {}, {})

    def advance(self, batches: Tensor, learning_rates: Tensor) -> Tensor:
        losses = []
        for indices, lr in zip(batches, learning_rates, strict=True):
            x, y = self.batch(indices)
            assert x.dtype == torch.int64
            if self.memory is not None:
                assert torch.equal(self.train.ids[indices * x.shape[1] - 1], self.memory), "no batch is left out"
            self.begun_with.append(self.memory)
            result = self.backpropagate(x, y)
            self.W = self.W - lr * result.gradients["table"]
            self.memory = x[:, -1] if self.train.carries else None
            self.steps += 1
            losses.append(result.loss)
        return torch.stack(losses)

    def forget(self) -> None:
        self.memory = None
        self.forgot.append(self.steps)

    def evaluate(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        output = self.W[x.flatten()]
        self.given.append(weakref.ref(output))
        self.largest = max(self.largest, len(output))
        return torch.nn.functional.cross_entropy(output, y, reduction="sum"), output

    def activations(self, x: Tensor) -> dict[str, Tensor]:
        raise AssertionError("of a text only the cost is watched")

    def is_finite(self) -> bool:
        return bool(self.W.isfinite().all())

    def state_dict(self) -> Any:
        memory = {} if self.memory is None else {"last": self.memory.clone()}
        return {"model": {"table": self.W.clone()}, "optimizer": {}, "memory": memory, "steps": self.steps}

    def load_state_dict(self, state: Any) -> None:
        self.W, self.memory = state["model"]["table"].clone(), state["memory"].get("last")
        self.steps = state["steps"]
