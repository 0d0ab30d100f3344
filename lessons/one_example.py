"""What one example wants is not what all want: its step lowers its own cost and raises that of others.

    θ′ = θ − η ∇Cᵢ        Cₙ(θ′) − Cₙ(θ) ≈ −η ⟨∇Cᵢ, ∇Cₙ⟩        falls for n = i, rises where the two disagree
    θ′ = θ − η ∇C         C(θ′) − C(θ) ≈ −η ‖∇C‖²              C the mean over all examples, ∇C the mean of their ∇Cₙ

At random initial values nearly all examples agree: nine of ten outputs should be lower, so whatever lowers the cost
of one lowers that of all. The claim is about what is left once that is learned, and the outputs are all near 0.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lessons.drawing import signed
from lessons.lesson import Curve, Report
from lessons.measure import costs, gradient, new_network, train_to
from lessons.runs import batch
from training.dashboard.figures import BLUE, GREEN, VERMILION, new_figure
from training.data import Dataset
from training.learners.manual import ManualLearner

TITLE = "If the network listened to one example only"
CLAIM = (
    "A step for one example, a 2, lowers its cost and raises that of others: listening to it alone would make the "
    "network call every picture a 2. The average of what all examples want lowers the mean cost."
)
SOURCE = (
    '3Blue1Brown, "What is backpropagation really doing?" (chapter 3 of the videos, '
    "https://www.3blue1brown.com/lessons/backpropagation)"
)
STAGES = (0, 30, 1000)  # steps of training before; at 30 the outputs are near 0.1 and no digit is known
SETTLED = 30
EXAMPLES, PICTURES = 1000, 300  # training examples whose costs, and test pictures whose classes are looked at
CHOICES = 100  # of the one example: each of the first so many
ETA = 0.1  # so small that a step's first order decides
ALONE = 100  # steps for one example alone
MOST = 0.9  # the part that counts as nearly all


@dataclass(frozen=True)
class OneStep:
    """Changes of cost by one step: of every example by a step for each choice (choices, examples), and for all."""

    changes: Tensor
    averaged: Tensor
    y: Tensor

    @property
    def own(self) -> Tensor:
        """(choices,): the change for the very example that the step was for."""
        return self.changes.diagonal()

    @property
    def of_others(self) -> list[Tensor]:
        """For each choice, the changes for all examples of other classes."""
        return [change[self.y != own] for change, own in zip(self.changes, self.y, strict=False)]

    @property
    def mean_of_others(self) -> Tensor:
        """(choices,)"""
        return torch.stack([change.mean() for change in self.of_others])

    @property
    def rising(self) -> float:
        """The part of the examples of other classes whose costs rise, over all choices."""
        return (torch.cat(self.of_others) > 0).double().mean().item()


def one_step(network: ManualLearner, x: Tensor, y: Tensor) -> OneStep:
    """A step by −η ∇Cᵢ for each choice i, and one by −∇C as long as those are on average; θ stays as it is."""
    theta = network.params.theta
    before = costs(network, theta, x, y)

    def change(step: Tensor) -> Tensor:
        return costs(network, theta + step, x, y) - before

    steps = torch.stack([-ETA * gradient(network, x[i : i + 1], y[i : i + 1]) for i in range(CHOICES)])
    average = -gradient(network, x, y)
    average *= steps.norm(dim=1).mean() / average.norm()
    return OneStep(torch.stack([change(step) for step in steps]), change(average), y)


def called(network: ManualLearner, x: Tensor, digit: Tensor) -> float:
    """The part of the pictures x (B, 784) that the network calls `digit`: a class, or each one's own (B,)."""
    return (network.outputs(x).argmax(dim=1) == digit).double().mean().item()


def alone(network: ManualLearner, index: int, x: Tensor) -> Curve:
    """(step, part of the pictures x that are called its class), training for one example only; θ is put back then."""
    _, (digit,) = network.train.batch(torch.tensor([index]), network.dtype)
    before = network.state_dict()
    curve = [(0, called(network, x, digit))]
    for step in range(1, ALONE + 1):
        network.advance(torch.tensor([[index]]), torch.tensor([ETA], dtype=torch.float64))
        curve.append((step, called(network, x, digit)))
    network.load_state_dict(before)
    return curve


def run(data: Dataset, seed: int, run_dir: Path) -> Report:
    network = new_network(data, seed)
    x, y = batch(data.train, EXAMPLES)
    pictures, labels = batch(data.test, PICTURES)
    of_each_class = [int((y == digit).nonzero()[0]) for digit in range(len(data.classes))]
    steps: dict[int, OneStep] = {}
    curves: dict[int, list[Curve]] = {}
    recognized: dict[int, float] = {}
    for stage in STAGES:
        train_to(network, stage, seed)
        steps[stage] = one_step(network, x, y)
        curves[stage] = [alone(network, index, pictures) for index in of_each_class]
        recognized[stage] = called(network, pictures, labels)
    ends = {stage: torch.tensor([curve[-1][1] for curve in curves[stage]]) for stage in STAGES}
    table = [
        ["steps of training before", *(f"{stage:,}" for stage in STAGES)],
        ["pictures recognized", *(f"{recognized[stage]:.0%}" for stage in STAGES)],
        ["one step for one: its cost", *(f"{steps[stage].own.mean():+.1e}" for stage in STAGES)],
        ["… of other classes, mean", *(f"{steps[stage].mean_of_others.mean():+.1e}" for stage in STAGES)],
        ["… of these, rise", *(f"{steps[stage].rising:.0%}" for stage in STAGES)],
        ["one step for all: mean", *(f"{steps[stage].averaged.mean():+.1e}" for stage in STAGES)],
        [f"{ALONE} for one: called its class", *(f"{ends[stage].mean():.0%}" for stage in STAGES)],
    ]
    step = steps[SETTLED]
    raised = (step.mean_of_others > 0).double().mean().item()
    verdict = (
        f"after {SETTLED} steps of training, one step for one of {CHOICES} examples lowers its own cost and raises "
        f"{step.rising:.0%} of those of other classes, {ALONE} steps make {ends[SETTLED].mean():.0%} of pictures its "
        f"class, and a step for all lowers the mean cost. At random initial values, where all want the same first, "
        f"{steps[0].rising:.0%} rise; after {STAGES[-1]:,} steps, where a known example wants little, "
        f"{steps[STAGES[-1]].rising:.0%}."
    )
    listened = bool(step.own.max() < 0) and min(raised, step.rising, ends[SETTLED].min().item()) >= MOST
    holds = listened and all(bool(steps[stage].averaged.mean() < 0) for stage in STAGES)

    figure = new_figure(11, 3.8)
    axes = figure.add_subplot(1, 3, 1)
    of_others = torch.cat(step.of_others)
    bins = torch.linspace(1000 * step.own.min().item(), 1000 * of_others.max().item(), 60).tolist()
    for changes, color, label in (
        (step.own, GREEN, "the example itself"),
        (of_others, VERMILION, "examples of other classes"),
        (step.averaged, BLUE, "all, by a step for all"),
    ):
        share = torch.full_like(changes, 100 / len(changes))
        axes.hist(1000 * changes.numpy(), bins=bins, weights=share.numpy(), histtype="step", color=color, label=label)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_title(f"one step, after {SETTLED} of training")
    axes.set_xlabel("change of an example's cost, in thousandths")
    axes.set_ylabel("examples, %")
    axes.legend(frameon=False, fontsize=8)

    axes = figure.add_subplot(1, 3, 2)
    classes, chosen = torch.arange(len(data.classes)), y[:CHOICES]
    mean = torch.stack([step.changes[chosen == one][:, y == other].mean() for one in classes for other in classes])
    signed(figure, axes, mean.view(len(classes), -1))
    axes.set_xticks(classes.numpy(), data.classes)
    axes.set_yticks(classes.numpy(), data.classes)
    axes.set_title("change of the mean cost of a class")
    axes.set_xlabel("class of the others")
    axes.set_ylabel("class of the one")

    axes = figure.add_subplot(1, 3, 3)
    for stage, color in zip(STAGES, (BLUE, VERMILION, GREEN), strict=True):
        shares = torch.tensor([[share for _, share in curve] for curve in curves[stage]])  # (classes, steps)
        lines = axes.plot(shares.T, color=color, linewidth=1)
        lines[0].set_label(f"{stage:,} steps")
    axes.set_title("stepping for one example only")
    axes.set_xlabel("step")
    axes.set_ylabel("part of the pictures called its class")
    axes.legend(title="trained for", frameon=False, fontsize=8, loc="center right")
    alone_runs = {
        f"only a {name}, after {stage} steps": {"called/its_class": curve}
        for stage in STAGES
        for name, curve in zip(data.classes, curves[stage], strict=True)
    }
    return Report(table, holds, verdict, figure, alone_runs)
