"""Mini-batches: the same downhill direction on average, with noise that falls as 1/√B.

    g = ∇C = (1/N) Σᵢ gᵢ                     the gradient: the mean of what N examples want
    g_B                                      the same of B of them, drawn at random
    E g_B = g                                on average the same direction
    E‖g_B − g‖² = S/B · (N − B)/(N − 1)      with S = (1/N) Σᵢ ‖gᵢ − g‖²

The last factor is that of drawing without putting back: with B = N nothing is left to chance. A step on B examples is
B/N of the work of a step on all, so the same work pays for N/B as many.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lessons.descent import descend
from lessons.lesson import Report
from lessons.measure import gradient
from lessons.runs import batch, first, learner
from training.dashboard.figures import COLORS, new_figure
from training.data import Dataset
from training.data.order import epoch_order
from training.families.configure import configure
from training.learners.base import activations
from training.learners.manual import ManualLearner

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "Batch sizes: a drunk man who stumbles downhill quickly"
CLAIM = (
    "The gradient of a mini-batch points downhill on average, with noise that falls as one over the square root of its "
    "size. Many cheap, noisy steps lower the cost much more than the few exact steps that use as many examples."
)
SEE = (
    "Left: paths from one start over one cost surface. Small batches (orange, blue) wander and get far; the exact "
    "steps of the whole batch go straight and hardly leave the start. Middle: after the same number of examples, the "
    "smallest batches have the lowest cost. Right: the measured noise lies on the line that theory gives."
)
SOURCE = (
    "3Blue1Brown, chapter 3 (a drunk man stumbling down a hill with quick steps, against a careful one); "
    "Nielsen, chapter 1 (http://neuralnetworksanddeeplearning.com/chap1.html: like a poll) and 3 (a wonky compass)"
)
EXAMPLES = 2_000
SIZES = (1, 10, 100, 1_000, EXAMPLES)
NETWORK = configure(hidden=(30,), loss="quadratic", init="scaled-normal", lr=1.0, epochs=3)
WHOLE_RATES = (3.0, 10.0, 30.0)  # for the whole batch too, lest it lose only because of its learning rate
DRAWS = 200  # of batches, for the noise
LAW = 0.1  # how far the exponent of B may be from −1: it is known to 0.01
SIZE = 0.2  # how far the noise may be from the law, as a part of it: 200 draws know it to about 0.05
AGREE = 1e-12  # of a mean over all examples, in float64: rounding
SMALL = (1, 10)
FARTHER = 0.5  # of the cost that the whole batch leaves with its best rate
LOOKS = 250  # at each path


@dataclass(frozen=True)
class Course:
    """A descent with batches of one size: the costs of all examples along its path, and where it went."""

    size: int
    lr: float
    steps: list[int]
    costs: list[float]
    thetas: Tensor  # (looks, parameters)
    seconds: float  # of the steps alone

    @property
    def examples(self) -> list[int]:
        """Seen so far."""
        return [step * self.size for step in self.steps]


def noise_of_one(network: ManualLearner, x: Tensor, y: Tensor) -> float:
    """S = (1/N) Σᵢ ‖gᵢ‖² − ‖g‖² from one pass: by BP3 and BP4 ‖gᵢ‖² = Σ_l ‖δᵢˡ‖² (1 + ‖aᵢˡ⁻¹‖²)."""
    result = network.backpropagate(x, y)
    squares, before = torch.zeros(len(x), dtype=x.dtype), x
    for layer, a in activations(result.outputs).items():
        delta = len(x) * result.deltas[layer]  # the mean's 1/N is in it
        squares += delta.square().sum(dim=1) * (1 + before.square().sum(dim=1))
        before = a
    return (squares.mean() - network.gradients.theta.square().sum()).item()


def law(noise: float, size: int, examples: int) -> float:
    """S/B · (N − B)/(N − 1)"""
    return noise / size * (examples - size) / (examples - 1)


def drawn_noise(network: ManualLearner, x: Tensor, y: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """‖g_B − g‖² of DRAWS batches."""
    g = gradient(network, x, y)
    draws = [torch.randperm(len(x), generator=generator)[:size] for _ in range(DRAWS)]
    return torch.stack([(gradient(network, x[i], y[i]) - g).square().sum() for i in draws])


def off_on_average(network: ManualLearner, x: Tensor, y: Tensor, size: int, seed: int) -> float:
    """‖mean of g_B − g‖ / ‖g‖ over the batches of one epoch, which holds every example once."""
    g, batches = gradient(network, x, y), epoch_order(seed, 0, len(x)).view(-1, size)
    mean = sum(gradient(network, x[i], y[i]) for i in batches) / len(batches)
    return ((mean - g).norm() / g.norm()).item()


def exponent(noises: Mapping[int, Tensor], examples: int) -> tuple[float, float]:
    """k of E‖g_B − g‖² (N − 1)/(N − B) ∝ Bᵏ, with its standard error: weighted least squares of the logarithms."""
    b = torch.tensor(list(noises), dtype=torch.float64).log()
    means = torch.stack([noise.mean() for noise in noises.values()])
    errors = torch.stack([noise.std() for noise in noises.values()]) / (means * DRAWS**0.5)  # of the logarithms
    logs = torch.stack([(mean / law(size, size, examples)).log() for size, mean in zip(noises, means, strict=True)])
    w = errors**-2
    b = b - (w * b).sum() / w.sum()
    information = (w * b.square()).sum()
    return ((w * b * logs).sum() / information).item(), information.rsqrt().item()


def course(data: Dataset, size: int, lr: float, seed: int) -> Course:
    config = replace(NETWORK, batch_size=size, lr=lr, seed=seed)
    network, total = learner(config, data), config.total_steps(data.train.steps(size))
    x, y = batch(data.train, len(data.train), torch.float32)
    steps, costs, thetas, seconds = [], [], [], 0.0
    clock = time.perf_counter()
    for step in descend(network, size, lr, config.epochs, seed):
        seconds += time.perf_counter() - clock
        if step % max(1, total // LOOKS) == 0 or step == total:
            steps.append(step)
            costs.append(network.evaluate(x, y)[0].item() / len(x))
            thetas.append(network.params.theta.clone())
        clock = time.perf_counter()
    return Course(size, lr, steps, costs, torch.stack(thetas), seconds)


def confirmed(off: float, k: float, miss: float, courses: Sequence[Course], whole: Course) -> bool:
    """Whether batches are right on average, their noise obeys the law, and the small ones got much farther."""
    farther = all(c.costs[-1] < FARTHER * whole.costs[-1] for c in courses if c.size in SMALL)
    return off < AGREE and abs(k + 1) < LAW and miss < SIZE and farther


def draw_paths(axes: Axes, courses: Sequence[Course], data: Dataset) -> None:
    """The paths on the plane through their start that comes nearest to them all, with the true cost on this plane."""
    start, thetas = courses[0].thetas[0], torch.cat([c.thetas for c in courses])
    directions = torch.linalg.svd(thetas - start, full_matrices=False)[2][:2]
    low, high = ((thetas - start) @ directions.T).aminmax(dim=0)
    margin = 0.15 * (high - low).max()
    across, up = (torch.linspace(a, b, 20) for a, b in zip(low - margin, high + margin, strict=True))

    network = learner(NETWORK, data)
    x, y = batch(data.train, len(data.train), torch.float32)
    costs = torch.empty(len(up), len(across))
    for i, v in enumerate(up):
        for j, u in enumerate(across):
            network.params.theta.copy_(start + torch.stack([u, v]) @ directions)
            costs[i, j] = network.evaluate(x, y)[0] / len(x)
    levels = torch.logspace(costs.min().log10().item(), costs.max().log10().item(), 14)
    axes.clabel(axes.contour(across, up, costs, levels=levels, colors="gray", linewidths=0.5), fontsize=6, fmt="%.2f")
    for c, color in zip(courses, COLORS, strict=False):
        path = (c.thetas - start) @ directions.T
        axes.plot(path[:, 0], path[:, 1], color=color, linewidth=1)
        axes.plot(path[-1, 0], path[-1, 1], "o", color=color)
    axes.set_title("paths on one cost surface")
    axes.set_xlabel("θ along the paths' first principal direction")
    axes.set_ylabel("second principal direction")


def run(data: Dataset, seed: int, run_dir: Path) -> Report:
    data = first(data, EXAMPLES, 1)
    courses = [course(data, size, NETWORK.lr, seed) for size in SIZES]
    whole = min([courses[-1], *(course(data, EXAMPLES, lr, seed) for lr in WHOLE_RATES)], key=lambda c: c.costs[-1])

    there = learner(replace(NETWORK, batch_size=10, dtype="float64", seed=seed), data)
    for _ in descend(there, 10, NETWORK.lr, 1, seed):
        pass
    x, y = batch(data.train, EXAMPLES)
    generator = torch.Generator().manual_seed(seed)
    noises = {size: drawn_noise(there, x, y, size, generator) for size in SIZES if size < EXAMPLES}
    k, error = exponent(noises, EXAMPLES)
    offs = [off_on_average(there, x, y, size, seed) for size in SIZES]
    off, length, of_one = max(offs), gradient(there, x, y).norm().item(), noise_of_one(there, x, y)
    measured = [noise.mean().item() ** 0.5 / length for noise in noises.values()]
    predicted = {size: law(of_one, size, EXAMPLES) ** 0.5 / length for size in range(1, EXAMPLES + 1)}
    miss = max(abs(noise / predicted[size] - 1) for size, noise in zip(noises, measured, strict=True))

    table = [["batch", "noise / ‖∇C‖", "predicted", "steps", f"cost after {NETWORK.epochs} epochs"]]
    for c, noise in zip(courses, [*measured, offs[-1]], strict=True):  # the whole batch can be drawn in one way only
        pair = [f"{noise:.2f}", f"{predicted[c.size]:.2f}"]
        table.append([f"{c.size:,}", *pair, f"{c.steps[-1]:,}", f"{c.costs[-1]:.3f}"])
    best = [f"{whole.steps[-1]:,}", f"{whole.costs[-1]:.3f}"]
    table.append([f"{EXAMPLES:,}, best η = {whole.lr:g}", "", "", *best])
    verdict = (
        f"the squared noise is proportional to the batch size to the power {k:.3f} ± {error:.3f} (theory: −1), and the "
        f"mean over the batches of an epoch is ∇C, to {off:.0e}. After {NETWORK.epochs} epochs batches of 1 and 10 "
        f"have lowered the cost to {courses[0].costs[-1]:.3f} and {courses[1].costs[-1]:.3f}, the whole batch with the "
        f"best of {1 + len(WHOLE_RATES)} learning rates to {whole.costs[-1]:.3f}."
    )

    figure = new_figure(11, 3.8)
    draw_paths(figure.add_subplot(1, 3, 1), courses, data)
    axes = figure.add_subplot(1, 3, 2)
    for c, color in zip(courses, COLORS, strict=False):
        axes.plot(c.examples, c.costs, color=color, label=f"B = {c.size:,}: {c.seconds:.2f} s")
    axes.set_yscale("log")
    axes.set_title("as many examples, in many steps or few")
    axes.set_xlabel("examples seen")
    axes.set_ylabel("mean cost of all examples")
    axes.legend(frameon=False, fontsize=8)
    axes = figure.add_subplot(1, 3, 3)
    axes.loglog(list(noises), measured, "o", color=COLORS[0], label=f"{DRAWS} batches each")
    axes.loglog(list(predicted), list(predicted.values()), color="black", linewidth=0.8, label="theory")
    axes.set_title("the noise falls as 1/√B")
    axes.set_xlabel("batch size B")
    axes.set_ylim(bottom=0.5 * min(measured))
    axes.set_ylabel("‖g_B − ∇C‖ / ‖∇C‖, root mean square")
    axes.legend(frameon=False, fontsize=8)
    curves = {f"batch {c.size}": list(zip(c.examples, c.costs, strict=True)) for c in courses}
    charts = {"cost by examples seen": curves}
    return Report(table, confirmed(off, k, miss, courses, whole), verdict, figure, charts)
