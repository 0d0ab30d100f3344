"""Why the cross-entropy: under the quadratic cost a sigmoid that is badly wrong learns slowly.

    C = ½(a − y)²                          δ = ∂C/∂z = (a − y) σ′(z)       quadratic
    C = −[y ln a + (1 − y) ln(1 − a)]      δ = ∂C/∂z = a − y               cross-entropy: σ′ cancels
    ∂C/∂w = δ x                            with a = σ(z), z = w x + b

An output near 1 that should be 0 has σ′(z) = a (1 − a) near 0: the quadratic cost hardly moves what is most wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from lessons.descent import descend
from lessons.lesson import Report
from lessons.runs import batch, first, learner
from manual_backprop.losses import LOSSES
from manual_backprop.models.mlp import MLP
from manual_backprop.tape import Tape
from training.dashboard.figures import BLUE, GREEN, VERMILION, new_figure
from training.data import Dataset
from training.families.configure import configure

TITLE = "Quadratic cost and cross-entropy: learning from bad mistakes"
CLAIM = (
    "With the quadratic cost, sigmoid outputs that are badly wrong learn slowly, because their gradient has the factor "
    "σ′. With the cross-entropy σ′ cancels, and the gradient is larger the more wrong they are."
)
SEE = (
    "Left: with the quadratic cost, the neuron that starts badly wrong (orange) learns almost nothing at first: its "
    "curve is flat. Middle: with the cross-entropy the same neuron starts with the steeper curve. Right: the more "
    "wrong the outputs of a digit network are at the start, the longer the quadratic cost needs; the cross-entropy "
    "does not."
)
SOURCE = "Nielsen, chapter 3 (http://neuralnetworksanddeeplearning.com/chap3.html): one neuron, input 1, target 0"
Cost = Literal["quadratic", "sigmoid-cross-entropy"]
QUADRATIC: Cost = "quadratic"
ENTROPY: Cost = "sigmoid-cross-entropy"
COSTS = QUADRATIC, ENTROPY
STARTS = WRONG, BADLY_WRONG = (0.6, 0.9), (2.0, 2.0)  # Nielsen's w and b
RATES = {QUADRATIC: 0.15, ENTROPY: 0.005}  # Nielsen's, so that the curves can be seen: no comparison of the costs
EPOCHS = 300
STEP = 1e-5  # of a central difference: its own error is about STEP² = 1e-10
AGREE = 1e-7
SLOW, STEADY = 3.0, 2.0  # times as long from the worse start: at least, at most
DIGITS = configure(hidden=(30,), init="scaled-normal", batch_size=10, lr=0.05, epochs=40)
SHIFTS = (0.0, 2.0, 4.0, 6.0)  # of zᴸ: with 6, all ten outputs are near σ(6) = 0.998, where nine should be 0


@dataclass(frozen=True)
class Course:
    """How something learned: its cost before each step and after the last, and its δ before the first."""

    costs: list[float]
    delta: float

    @property
    def half(self) -> float:
        """Steps until half of the first cost is gone; ∞ if it never was."""
        return next((step for step, cost in enumerate(self.costs) if cost <= self.costs[0] / 2), inf)


def backpropagate(cost: Cost, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """C, ∂C/∂w and ∂C/∂b of one neuron with input 1 and target 0; all 0-d."""
    model = MLP((1, 1), ("identity" if cost == ENTROPY else "sigmoid",))  # σ is a part of the cross-entropy
    loss, x, y = LOSSES[cost](), torch.ones(1, 1, dtype=w.dtype), torch.zeros(1, 1, dtype=w.dtype)
    params = {"layer1.weight": w.view(1, 1), "layer1.bias": b.view(1)}
    gradients: dict[str, Tensor] = {}
    tape = Tape()
    output = model.forward(params, x, tape)
    C, cache = loss.forward(output, y)
    model.backward(params, loss.backward(1.0, cache), gradients, tape)
    return C, gradients["layer1.weight"].squeeze(), gradients["layer1.bias"].squeeze()


def wiggle(cost: Cost, w: Tensor, b: Tensor) -> float:
    """(C(w + h, b) − C(w − h, b)) / 2h: ∂C/∂w without backpropagation."""
    return ((backpropagate(cost, w + STEP, b)[0] - backpropagate(cost, w - STEP, b)[0]) / (2 * STEP)).item()


def neuron(cost: Cost, start: tuple[float, float]) -> tuple[Course, float]:
    """One neuron's gradient descent, and how far ∂C/∂w at its start is from what wiggling w finds."""
    w, b = (torch.tensor(value, dtype=torch.float64) for value in start)
    delta, wiggled = backpropagate(cost, w, b)[1].item(), wiggle(cost, w, b)
    costs = []
    for _ in range(EPOCHS + 1):
        C, dw, db = backpropagate(cost, w, b)
        costs.append(C.item())
        w, b = w - RATES[cost] * dw, b - RATES[cost] * db
    return Course(costs, delta), abs(delta - wiggled) / abs(wiggled)


def digits(cost: Cost, shift: float, data: Dataset, seed: int) -> Course:
    """A network's descent, until half of its cost is gone, from output biases that are too large by `shift`."""
    network = learner(replace(DIGITS, loss=cost, seed=seed), data)
    network.params["layer2.bias"].add_(shift)
    x, y = batch(data.train, 500, torch.float32)
    delta = len(x) * network.backpropagate(x, y).deltas["layer2"].square().mean().sqrt()  # δ has the mean's 1/B in it
    course = Course([], delta.item())
    for _ in descend(network, DIGITS.batch_size, DIGITS.lr, DIGITS.epochs, seed):
        course.costs.append(network.evaluate(x, y)[0].item() / len(x))
        if course.half < inf:
            break
    return course


def confirmed(courses: Mapping[Cost, Sequence[Course]]) -> bool:
    """Whether, from the worst start, the quadratic cost's δ is smaller and it took much longer, and not so the other's.

    `courses` go from the best start to the worst.
    """
    first, last = ({cost: courses[cost][i] for cost in COSTS} for i in (0, -1))
    deltas = last[QUADRATIC].delta < first[QUADRATIC].delta and last[ENTROPY].delta > first[ENTROPY].delta
    return deltas and slowdown(courses[QUADRATIC]) > SLOW and slowdown(courses[ENTROPY]) < STEADY


def slowdown(courses: Sequence[Course]) -> float:
    """How many times as long it took from the worst start as from the best."""
    return courses[-1].half / courses[0].half


def run(data: Dataset, seed: int, run_dir: Path) -> Report:
    data = first(data, 1_000, 1)
    found = {(cost, start): neuron(cost, start) for cost in COSTS for start in STARTS}
    neurons = {cost: [found[cost, start][0] for start in STARTS] for cost in COSTS}
    networks = {cost: [digits(cost, shift, data, seed) for shift in SHIFTS] for cost in COSTS}
    error = max(error for _, error in found.values())

    names = [f"neuron, w {w}, b {b}" for w, b in STARTS] + [f"digits, all zᴸ + {shift:g}" for shift in SHIFTS]
    table = [["start", "quadratic: δ", "cost halved after", "entropy: δ", "cost halved after"]]
    for i, name in enumerate(names):
        both = [(neurons[cost] + networks[cost])[i] for cost in COSTS]
        unit = "epochs" if i < len(STARTS) else "steps"
        table.append([name, *(text for course in both for text in (f"{course.delta:.3f}", f"{course.half} {unit}"))])
    longer = {cost: (slowdown(neurons[cost]), slowdown(networks[cost])) for cost in COSTS}
    verdict = (
        f"to halve the quadratic cost takes {longer[QUADRATIC][0]:.1f} times as long from the worst start as from the "
        f"best (neuron) and {longer[QUADRATIC][1]:.0f} times (digits); to halve the cross-entropy "
        f"{longer[ENTROPY][0]:.1f} and {longer[ENTROPY][1]:.1f} times. The neuron's gradients agree with central "
        f"differences, to {error:.0e}."
    )

    figure = new_figure(11, 3.8)
    for column, cost in enumerate(COSTS, start=1):
        axes = figure.add_subplot(1, 3, column)
        for course, (w, b), color in zip(neurons[cost], STARTS, (BLUE, VERMILION), strict=True):
            axes.plot(course.costs, color=color, label=f"w = {w}, b = {b}")
        axes.set_title(f"one neuron, {cost.removeprefix('sigmoid-')}, η = {RATES[cost]}")
        axes.set_xlabel("epoch")
        axes.set_ylabel("cost")
        axes.set_ylim(0, 1.25 * neurons[cost][1].costs[0])
        axes.legend(frameon=False)
    axes = figure.add_subplot(1, 3, 3)
    for cost, color in zip(COSTS, (GREEN, "black"), strict=True):
        halves = [course.half for course in networks[cost]]
        axes.plot(SHIFTS, halves, "o-", color=color, label=cost.removeprefix("sigmoid-"))
    axes.set_yscale("log")
    axes.set_title(f"digit network, η = {DIGITS.lr}")
    axes.set_xlabel("added to z of every output at the start")
    axes.set_ylabel("steps until the cost is halved")
    axes.legend(frameon=False)

    charts = {
        f"cost of one neuron, {cost}": {
            f"w {w:g}, b {b:g}": list(enumerate(course.costs))
            for course, (w, b) in zip(neurons[cost], STARTS, strict=True)
        }
        for cost in COSTS
    }
    holds = error < AGREE and confirmed(neurons) and confirmed(networks)
    return Report(table, holds, verdict, figure, charts)
