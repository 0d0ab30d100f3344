"""Too low, right, too high: what the learning rate does, outside and inside.

    Δθ = −η ∇C                          one step
    ΔC ≈ ∇C · Δθ = −η ‖∇C‖²             what the slope promises, and only a small step keeps
    δᴸ = ∇ₐC ⊙ σ′(zᴸ)                   BP1: where an output is saturated, σ′ is about 0, and so is δ

A step that is much too long throws the outputs to 0 or 1 for every picture. Their σ′ is then so small that no gradient
leads back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from lessons.descent import descend
from lessons.lesson import Report
from lessons.runs import batch, first, learner
from training.config import Config
from training.dashboard.figures import BLUE, GREEN, VERMILION, new_figure
from training.data import Dataset
from training.families.configure import configure
from training.learners.manual import ManualLearner

TITLE = "The learning rate: too low, right, too high"
CLAIM = (
    "With a learning rate of 0.001 the network learns, but far too slowly; with 3 it learns; with 100 it stays at the "
    "accuracy of guessing, because its outputs saturate and the gradient is then almost 0."
)
SEE = (
    "Left: one learning rate of three (green) reaches a high accuracy. Middle: with the largest (orange), σ′ of the "
    "outputs collapses in the first steps. Right: the gradient collapses with it, and learning has ended. With the "
    "smallest (blue) the gradient stays large, but the steps are too short."
)
SOURCE = (
    "Nielsen, chapter 1 (http://neuralnetworksanddeeplearning.com/chap1.html), 784-30-10 neurons (100 hidden ones with "
    "0.001); that saturated outputs learn slowly: chapters 2 and 3"
)
RATES = LOW, RIGHT, HIGH = 0.001, 3.0, 100.0
NETWORK = configure(hidden=(30,), loss="quadratic", init="standard-normal", batch_size=10, epochs=3)
GUESSING = 0.3  # accuracy: one class of ten is right without learning, and with luck two
LEARNED = 0.6  # accuracy: 3,000 steps reach 70–85%, Nielsen's 150,000 reach 95%
DEAD = 0.01  # of the gradient at the start; a network that learns keeps more than this


@dataclass(frozen=True)
class Look:
    """How a network is after `step` steps, on the pictures that judge it."""

    step: int
    cost: float
    accuracy: float
    slope: float  # mean σ′(zᴸ) of all outputs, ¼ at most
    gradient: float  # ‖∇C‖


def look(network: ManualLearner, x: Tensor, y: Tensor) -> Look:
    """One forward and backward pass; σ′(z) = a (1 − a)."""
    result = network.backpropagate(x, y)
    a = result.outputs["layer2.a"]
    accuracy, slope = (a.argmax(dim=1) == y).double().mean(), (a * (1 - a)).mean()
    gradient = network.gradients.theta.norm()
    return Look(network.steps, result.loss.item(), accuracy.item(), slope.item(), gradient.item())


def promise_kept(network: ManualLearner, x: Tensor, y: Tensor, lr: float) -> float:
    """(C(θ) − C(θ − η∇C)) / η‖∇C‖²: the real fall of one step, in parts of the promised one. θ is put back."""
    theta, before = network.params.theta, network.backpropagate(x, y).loss
    start, step = theta.clone(), lr * network.gradients.theta
    promised = step.dot(network.gradients.theta)
    theta.sub_(step)
    after = network.evaluate(x, y)[0] / len(y)
    theta.copy_(start)
    return ((before - after) / promised).item()


def course(network: ManualLearner, config: Config, data: Dataset) -> list[Look]:
    """Looks at a network while it descends: at the start, at the end, and at steps that grow by a third each time."""
    x, y = batch(data.test, len(data.test), network.dtype)
    total = config.total_steps(data.train.steps(config.batch_size))
    steps = {0, total} | {round(10 ** (k / 8)) for k in range(8 * len(str(total)))}
    taken = descend(network, config.batch_size, config.lr, config.epochs, config.seed)
    return [look(network, x, y) for step in taken if step in steps]


def confirmed(courses: Mapping[float, Sequence[Look]]) -> bool:
    """Whether the three rates crawled, learned and died."""
    low, right, high = (courses[lr] for lr in RATES)
    crawled = low[-1].cost < low[0].cost and low[-1].accuracy < GUESSING
    learned = right[-1].accuracy > LEARNED
    died = high[-1].accuracy < GUESSING and high[-1].gradient < DEAD * high[0].gradient
    return crawled and learned and died


def run(data: Dataset, seed: int, run_dir: Path) -> Report:
    data = first(data, 10_000, 1_000)
    x, y = batch(data.test, len(data.test), torch.float32)
    courses, kept = {}, {}
    for lr in RATES:
        config = replace(NETWORK, lr=lr, seed=seed)
        network = learner(config, data)
        kept[lr] = promise_kept(network, x, y, lr)
        courses[lr] = course(network, config, data)

    looks = [("before training", "", courses[RIGHT][0])]
    looks += [(f"{lr:g}", f"{kept[lr]:.1%}", courses[lr][-1]) for lr in RATES]
    table = [["learning rate", "ΔC / predicted", "cost", "accuracy", "mean σ′ of outputs", "‖∇C‖"]]
    table += [[n, k, f"{o.cost:.2f}", f"{o.accuracy:.1%}", f"{o.slope:.0e}", f"{o.gradient:.0e}"] for n, k, o in looks]
    low, right, high = (courses[lr][-1] for lr in RATES)
    verdict = (
        f"after {low.step:,} steps the accuracy is {low.accuracy:.0%} with {LOW:g}, {right.accuracy:.0%} with "
        f"{RIGHT:g} and {high.accuracy:.0%} with {HIGH:g}. With {HIGH:g} the norm of the gradient is "
        f"{high.gradient / courses[HIGH][0].gradient:.0e} of its first value; the first step already lowered the cost "
        f"by only {kept[HIGH]:.0%} of what the gradient predicts."
    )

    figure = new_figure(11, 3.8)
    panels = {"accuracy": "accuracy on test pictures", "slope": "mean σ′ of the outputs", "gradient": "‖∇C‖"}
    titles = ("one learning rate learns in time …", "… one saturates the outputs …", "… and its gradient vanishes")
    for column, (quantity, unit) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, 3, column)
        for lr, color in zip(RATES, (BLUE, GREEN, VERMILION), strict=True):
            values = [getattr(o, quantity) for o in courses[lr]]
            axes.plot([o.step for o in courses[lr]], values, color=color, label=f"η = {lr:g}")
        axes.set_xscale("symlog", linthresh=1)  # 0, 1, 10, …
        axes.set_yscale("linear" if quantity == "accuracy" else "log")
        axes.set_title(titles[column - 1])
        axes.set_xlabel("step")
        axes.set_ylabel(unit)
        axes.legend(frameon=False)
    charts = {"accuracy": "accuracy", "slope": "mean sigma' of the outputs", "gradient": "norm of the gradient"}
    curves = {
        chart: {f"rate {lr:g}": [(o.step, getattr(o, quantity)) for o in courses[lr]] for lr in RATES}
        for quantity, chart in charts.items()
    }
    return Report(table, confirmed(courses), verdict, figure, curves)
