"""Published figures, their sources, and the rules by which they were picked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Protocol

NIELSEN = "Nielsen, *Neural Networks and Deep Learning* (2015), [chapter {0}](http://neuralnetworksanddeeplearning.com/chap{0}.html)."
LECUN = (
    "LeCun, Bottou, Bengio and Haffner, *Gradient-Based Learning Applied to Document Recognition* (1998), section III."
)
NNFS = "Kinsley and Kukieła, *Neural Networks from Scratch in Python* (2020), chapter {}."


class Accuracies(Protocol):
    """What a rule sees of a run."""

    @property
    def last(self) -> float: ...

    @property
    def best(self) -> float: ...


@dataclass(frozen=True)
class Rule:
    text: str
    of: Callable[[Accuracies], float]  # a run
    pick: Callable[[Sequence[float]], float]  # among what this gives for the runs, in the order of their seeds

    def ours(self, runs: Sequence[Accuracies]) -> float:
        return self.pick([self.of(run) for run in runs])


BEST_OF_THREE = Rule("best epoch, best of three runs", lambda run: run.best, lambda values: max(values[:3]))
LAST_EPOCH = Rule("last epoch of one run", lambda run: run.last, lambda values: values[0])
LAST_EPOCHS = Rule("mean of last epochs", lambda run: run.last, mean)


@dataclass(frozen=True)
class Published:
    preset: str
    network: str
    figure: str  # as published
    value: float | None  # the accuracy to be reached, if there is one
    rule: Rule
    source: str
    note: str = ""  # what is different here
    fails: float = 0.0  # where the point is that it does not learn: the accuracy that counts as failure too
    in_readme: bool = False
    seeds: int = 5


PUBLISHED = (
    Published(
        "3b1b",
        "784-16-16-10 sigmoid, quadratic cost",
        "about 96%",
        0.96,
        LAST_EPOCHS,
        "3Blue1Brown, *What is a neural network?* and *Gradient descent* (2017).",
        "The video gives no training settings. The weights that it shows score 93.63% on the same test images.",
        in_readme=True,
    ),
    Published(
        "nielsen-ch1",
        "784-30-10 sigmoid, quadratic cost, η = 3, N(0, 1) start",
        "95.42%",
        0.9542,
        BEST_OF_THREE,
        NIELSEN.format(1),
        in_readme=True,
    ),
    Published(
        "nielsen-ch1-100",
        "784-100-10 sigmoid, else the same",
        "96.59%",
        0.9659,
        BEST_OF_THREE,
        NIELSEN.format(1),
        "He adds that readers report large variation, and some much worse runs.",
        in_readme=True,
    ),
    Published(
        "nielsen-ch1-slow",
        "784-100-10 with η = 0.001",
        "21.42%",
        None,
        LAST_EPOCH,
        NIELSEN.format(1),
        "The point is that it hardly learns.",
        fails=0.35,
    ),
    Published(
        "nielsen-ch1-fast",
        "784-30-10 with η = 100",
        "9.82%",
        None,
        LAST_EPOCH,
        NIELSEN.format(1),
        "The point is that it does not learn.",
        fails=0.35,
    ),
    Published(
        "nielsen-ch3",
        "784-30-10 sigmoid, cross-entropy, η = 0.5, N(0, 1) start",
        "95.49%",
        0.9549,
        BEST_OF_THREE,
        NIELSEN.format(3),
        in_readme=True,
    ),
    Published(
        "nielsen-ch3-l2",
        "784-100-10 sigmoid, cross-entropy, L2, η = 0.1, 60 epochs",
        "98.04% on validation",
        0.9804,
        BEST_OF_THREE,
        NIELSEN.format(3),
        in_readme=True,
    ),
    Published(
        "nielsen-ch3-1000",
        "784-30-10 on 1,000 images, 400 epochs",
        "82.27%",
        0.8227,
        BEST_OF_THREE,
        NIELSEN.format(3),
    ),
    Published(
        "nielsen-ch3-1000-l2",
        "the same with L2",
        "87.1%",
        0.871,
        BEST_OF_THREE,
        NIELSEN.format(3),
    ),
    Published(
        "points",
        "2-16-16-2 tanh, softmax cross-entropy, momentum",
        "none",
        None,
        LAST_EPOCHS,
        "The blue and red points of the lessons' classifier, 4(x−5)² − 4(x−5)(y−5) + y² < 50.",
        "No accuracy is published for it.",
        in_readme=True,
    ),
    Published(
        "nnfs-spiral",
        "2-64-3 relu, softmax cross-entropy, Adam, 10,000 steps",
        "80.3% on validation",
        0.803,
        LAST_EPOCH,
        NNFS.format(11),
        "Our points are drawn by the same rule from another generator; 300 for validation.",
    ),
    Published(
        "nnfs-spiral-l2",
        "the same with L2",
        "83.0% on validation",
        0.83,
        LAST_EPOCH,
        NNFS.format(14),
        "Theirs is 0.0005 Σ w² over the first layer, biases included; ours is over all weights and no biases, and a "
        "tenth of that: the same λ on both layers gives 65.7%. It is the best of four values on these points.",
    ),
    Published(
        "lecun-300",
        "784-300-10, mean squared error",
        "95.3% (error 4.7%)",
        0.953,
        LAST_EPOCHS,
        LECUN,
        "Ours has sigmoid outputs and targets of 0 and 1, where theirs are scaled tanh and ±1, and another optimizer.",
        in_readme=True,
    ),
    Published(
        "lecun-300-100",
        "784-300-100-10, mean squared error",
        "96.95% (error 3.05%)",
        0.9695,
        LAST_EPOCHS,
        LECUN,
        "The same differences.",
        in_readme=True,
    ),
    Published(
        "best-mlp",
        "784-512-512-10 relu, softmax cross-entropy, dropout, Adam, one-cycle, shifted and turned copies",
        "none",
        None,
        LAST_EPOCHS,
        "The best that a fully connected network reached here in less than ten minutes on one core.",
        "Chosen on the last 10,000 training images; aimed at 99.0%.",
        in_readme=True,
    ),
    Published(
        "lenet5",
        "LeNet-5: convolutions, averages and scaled tanh; softmax cross-entropy, AdamW, one-cycle, moved pictures",
        "99.05% (error 0.95%)",
        0.9905,
        LAST_EPOCHS,
        LECUN,
        "Theirs has trained averages with an activation, a C3 that sees parts of S2, distances to drawn digits as "
        "outputs and another optimizer, and gets 0.95% without moved pictures (0.8% with). Chosen on the last 10,000 "
        "training images.",
        in_readme=True,
        seeds=3,
    ),
    Published(
        "small-cnn",
        "16-32-64 channels, a residual block each, batch normalization; AdamW, one-cycle, moved pictures",
        "none",
        None,
        LAST_EPOCHS,
        "A small residual network for MNIST.",
        "Chosen on the last 10,000 training images; aimed at 99.5%.",
        in_readme=True,
        seeds=3,
    ),
    Published(
        "fashion-cnn",
        "the same network on Fashion-MNIST",
        "none",
        None,
        LAST_EPOCHS,
        "The same for Fashion-MNIST.",
        "Chosen on the last 10,000 training images; aimed at 92.5%.",
        in_readme=True,
        seeds=3,
    ),
)
