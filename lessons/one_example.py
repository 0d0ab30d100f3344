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
from lessons.lesson import Curve, Report, mean_curve
from lessons.measure import costs, gradient, new_network, train_to
from lessons.runs import batch
from training.dashboard.figures import BLUE, COLORS, GREEN, VERMILION, new_figure
from training.data import Dataset
from training.learners.manual import ManualLearner

TITLE = "If the network listened to one example only"
CLAIM = (
    "A step that only one example asks for, a 2, lowers its own cost and raises the cost of others: many such steps "
    "make the network call every picture a 2. A step along the mean gradient of all examples lowers the mean cost."
)
SEE = (
    "Left: one step for one example lowers its own cost (orange, far left) and raises the cost of examples of other "
    "classes (blue, right of 0). Middle: the same by class. The diagonal is orange, because the step also helps "
    "examples of its own class; nearly all the rest is blue. Right: steps for one example only, each line one example. "
    "If the network has learned little, it soon calls every picture that class."
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
        ["training steps before", *(f"{stage:,}" for stage in STAGES)],
        ["accuracy on test pictures", *(f"{recognized[stage]:.0%}" for stage in STAGES)],
        ["one step for one: its own ΔC", *(f"{steps[stage].own.mean():+.1e}" for stage in STAGES)],
        ["… mean ΔC of other classes", *(f"{steps[stage].mean_of_others.mean():+.1e}" for stage in STAGES)],
        ["… share of them that rises", *(f"{steps[stage].rising:.0%}" for stage in STAGES)],
        ["one step for all: mean ΔC", *(f"{steps[stage].averaged.mean():+.1e}" for stage in STAGES)],
        [f"{ALONE} steps for one: called its class", *(f"{ends[stage].mean():.0%}" for stage in STAGES)],
    ]
    step = steps[SETTLED]
    raised = (step.mean_of_others > 0).double().mean().item()
    verdict = (
        f"after {SETTLED} training steps, one step for one example lowers its own cost and raises the cost of "
        f"{step.rising:.0%} of the examples of other classes (mean over {CHOICES} examples), {ALONE} such steps make "
        f"the network call {ends[SETTLED].mean():.0%} of test pictures its class, and a step for all lowers the mean "
        f"cost. Before training, when all examples ask for lower outputs first, {steps[0].rising:.0%} rise. After "
        f"{STAGES[-1]:,} steps, when the example is mostly classified correctly already, "
        f"{steps[STAGES[-1]].rising:.0%} rise."
    )
    listened = bool(step.own.max() < 0) and min(raised, step.rising, ends[SETTLED].min().item()) >= MOST
    holds = listened and all(bool(steps[stage].averaged.mean() < 0) for stage in STAGES)

    figure = new_figure(11, 3.8)
    axes = figure.add_subplot(1, 3, 1)
    of_others = torch.cat(step.of_others)
    bins = torch.linspace(1000 * step.own.min().item(), 1000 * of_others.max().item(), 60).tolist()
    for changes, color, label in (
        (step.own, VERMILION, "step for one: the example itself"),
        (of_others, BLUE, "step for one: other classes"),
        (step.averaged, GREEN, "step for all: all examples"),
    ):
        share = torch.full_like(changes, 100 / len(changes))
        axes.hist(1000 * changes.numpy(), bins=bins, weights=share.numpy(), histtype="step", color=color, label=label)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_title(f"one step, after {SETTLED} training steps")
    axes.set_xlabel("change of an example's cost × 1,000")
    axes.set_ylabel("examples, %")
    axes.set_ylim(0, 1.4 * axes.get_ylim()[1])  # room for the legend
    axes.legend(frameon=False, fontsize=8)

    axes = figure.add_subplot(1, 3, 2)
    classes, chosen = torch.arange(len(data.classes)), y[:CHOICES]
    mean = torch.stack([step.changes[chosen == one][:, y == other].mean() for one in classes for other in classes])
    signed(figure, axes, mean.view(len(classes), -1))
    axes.set_xticks(classes.numpy(), data.classes)
    axes.set_yticks(classes.numpy(), data.classes)
    axes.set_title("change of the mean cost of a class")
    axes.set_xlabel("class whose cost changes")
    axes.set_ylabel("class of the example of the step")

    axes = figure.add_subplot(1, 3, 3)
    for stage, color in zip(STAGES, COLORS[3:], strict=False):
        shares = torch.tensor([[share for _, share in curve] for curve in curves[stage]])  # (classes, steps)
        lines = axes.plot(shares.T, color=color, linewidth=1)
        lines[0].set_label(f"{stage:,}")
    axes.set_title("steps for one example only")
    axes.set_xlabel("step")
    axes.set_ylabel("share of test pictures called its class")
    axes.legend(title="training steps before", frameon=False, fontsize=8, loc="center right")
    means = {f"{stage} training steps before": mean_curve(curves[stage]) for stage in STAGES}
    return Report(table, holds, verdict, figure, {"called its class, mean of ten examples": means})
