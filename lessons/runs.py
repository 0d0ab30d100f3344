"""What lessons train: parts of the data, and runs like those of train.py."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.config import Config
from training.dashboard.metrics import METRICS, read_metrics
from training.dashboard.tensorboard import MetricsWriter
from training.data import Dataset, Examples
from training.learners.factory import make_manual
from training.learners.manual import ManualLearner
from training.loop import Loop
from training.prepare import prepare
from training.run import create, environment


class Silent:
    """A console that says nothing."""

    def steps(self, done: int) -> None:
        pass

    def evaluated(self, epoch: int, step: int, values: dict[str, float]) -> None:
        pass

    def notice(self, text: str) -> None:
        pass


def first(data: Dataset, train: int, test: int) -> Dataset:
    """The data set's first so many training and test examples; all where it has fewer."""
    return replace(data, train=data.train.first(train), test=data.test.first(test))


def batch(split: Examples, count: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """The first `count` examples: x (count, features) from 0 to 1, and their classes y (count,)."""
    return split.batch(torch.arange(count), dtype)


def learner(config: Config, data: Dataset) -> ManualLearner:
    """A hand-written learner at its initial values, for a lesson that takes the steps itself."""
    config, model = prepare(config, data)
    return make_manual(config, data, model)


def train(config: Config, data: Dataset, run_dir: Path) -> list[dict[str, Any]]:
    """A whole run as train.py does it; returns the lines of its metrics.jsonl. Raises NotFiniteError as the loop does.

    TensorBoard does not see it: of its events nothing is left.
    """
    config, model = prepare(config, data)
    create(run_dir, config)
    with closing(MetricsWriter(run_dir, config, data, environment=environment(config))) as writer:
        Loop(config, data, make_manual(config, data, model), writer, Silent(), run_dir).run()
    for events in run_dir.glob("events.out.tfevents.*"):
        events.unlink()
    return list(read_metrics(run_dir / METRICS))


def curve(metrics: list[dict[str, Any]], tag: str) -> list[tuple[int, float]]:
    """(step, value) of one tag."""
    return [(line["step"], line[tag]) for line in metrics if line.get(tag) is not None]
