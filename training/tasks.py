"""What a network learns to do, as far as a run must know: what is measured, which of it decides, and what is drawn."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf, log
from typing import Literal

from training.data import Dataset


@dataclass(frozen=True)
class Sums:
    """What an evaluation adds up over the targets."""

    cost: float  # without penalties
    correct: int  # targets that have the largest output
    targets: int


@dataclass(frozen=True)
class Metric:
    name: str  # its tags are name/test and name/train
    of: Callable[[Sums], float]
    unit: str
    format: str  # of Python's format()
    scale: Literal["logarithmic", "share"]  # of a curve; a share is from 0 to 1
    on_train: bool = True  # whether an evaluation logs it for training examples too

    def shown(self, value: float) -> str:
        return format(value, self.format)


@dataclass(frozen=True)
class Task:
    name: str
    metrics: tuple[Metric, ...]
    headline: Metric  # one of the metrics: best.pt, --patience, --schedule halve and the summary of a run follow it
    larger_is_better: bool  # of the headline
    figures: tuple[str, ...]  # what the dashboard draws at the end, where it fits the examples

    @property
    def keeps_outputs(self) -> bool:
        """Whether an evaluation keeps every output and target: the figures are made of them."""
        return bool(self.figures)

    @property
    def worst(self) -> float:
        """A headline that every other is better than, or as good."""
        return 0.0 if self.larger_is_better else inf

    def is_better(self, value: float, best: float) -> bool:
        return value > best if self.larger_is_better else value < best

    def evaluate(self, sums: Sums) -> dict[str, float]:
        """Every metric by its name."""
        return {metric.name: metric.of(sums) for metric in self.metrics}

    def tags(self, on_test: Mapping[str, float], on_train: Mapping[str, float]) -> dict[str, float]:
        """What an evaluation logs, from the metrics by name."""
        logged = {f"{metric.name}/test": on_test[metric.name] for metric in self.metrics}
        return logged | {f"{metric.name}/train": on_train[metric.name] for metric in self.metrics if metric.on_train}

    def hparams(self, values: Mapping[str, float]) -> dict[str, float]:
        """What a run's row in the HPARAMS table ends with: the headline, then the other metrics."""
        names = [self.headline.name, *(metric.name for metric in self.metrics if metric is not self.headline)]
        return {f"hparam/{name}": values[name] for name in names}

    def shown(self, tags: Mapping[str, float]) -> str:
        """Values by their tags on one line: "loss/test 0.4455  accuracy/test 28.45%"."""
        metrics = {metric.name: metric for metric in self.metrics}
        return "  ".join(f"{tag} {metrics[tag.partition('/')[0]].shown(value)}" for tag, value in tags.items())


def mean_cost(sums: Sums) -> float:
    return sums.cost / sums.targets


def accuracy(sums: Sums) -> float:
    return sums.correct / sums.targets


def bits(sums: Sums) -> float:
    """The mean cost, which is in nats, in bits: a guess among 2^bits equally likely tokens would be as uncertain."""
    return mean_cost(sums) / log(2)


# loss/train is logged by the steps themselves: the mean cost of the mini-batches
ACCURACY = Metric("accuracy", accuracy, "fraction classified correctly", ".2%", "share")
LOSS = Metric("loss", mean_cost, "cost per example", ".4f", "logarithmic", on_train=False)
TOKEN_LOSS = Metric("loss", mean_cost, "cost per token", ".4f", "logarithmic", on_train=False)
BITS = Metric("bits", bits, "bits per token", ".3f", "logarithmic")

CLASSIFICATION = Task(
    name="classification",
    metrics=(LOSS, ACCURACY),
    headline=ACCURACY,
    larger_is_better=True,
    figures=("confusion_matrix", "mistakes", "decision_boundary"),
)
NEXT_TOKEN = Task(
    name="prediction of the next token",
    metrics=(TOKEN_LOSS, BITS),
    headline=BITS,
    larger_is_better=False,
    figures=(),
)
TASKS = {task.name: task for task in (CLASSIFICATION, NEXT_TOKEN)}


def task_of(data: Dataset) -> Task:
    """The task of a run: that of its data set."""
    return TASKS[data.task]
