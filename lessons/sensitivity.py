"""An element of the gradient says how sensitive the cost is to that weight.

    C(θ + h eₖ) − C(θ) = h ∂C/∂θₖ + O(h²)

So of two weights whose gradients are as 32 to 1, the same small nudge changes the cost 32 times as much at the first.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from lessons.lesson import Report
from lessons.measure import AGREE, costs, gradient, new_network, wiggle
from lessons.runs import batch
from manual_backprop.parameters import Parameters
from training.dashboard.figures import BLUE, GREEN, VERMILION, new_figure
from training.data import Dataset

TITLE = "The cost is 32 times more sensitive to this weight"
CLAIM = (
    "The size of an element of the gradient says how sensitive the cost is to that weight or bias: if it is 3.2 for "
    "one weight and 0.1 for another, a small change of the first changes the cost 32 times as much as the same change "
    "of the second."
)
SEE = (
    "Left: the cost as each of two weights is moved. One curve is steep (blue), the other almost flat (green). Each "
    "dashed line has the slope that backpropagation found, and touches its curve at 0. Right: the same for hundreds of "
    "weights and biases of all layers: every point lies on the diagonal."
)
SOURCE = (
    '3Blue1Brown, "What is backpropagation really doing?" (chapter 3 of the videos, '
    "https://www.3blue1brown.com/lessons/backpropagation)"
)
RATIO = 32  # 3Blue1Brown's 3.2 to 0.1
MOST_SENSITIVE = 100  # weights, of which one is the first of the pair
EXAMPLES = 100
NUDGES = (1.0, 0.1, 0.01, 0.001)
PER_LAYER = 300  # weights and biases that are wiggled one by one
PAIRS = 10_000
SENSITIVE = 1e-2  # of the largest gradient: the least with which a weight takes part in a pair
NEAR = 0.01  # relative error of a measured ratio that counts as equal; a nudge of 0.001 leaves less


def layers_of(params: Parameters) -> Tensor:
    """The number of the layer that each element of θ belongs to."""
    return params.vector(lambda name: float(name.removeprefix("layer").split(".")[0]))


def name_of(params: Parameters, position: int) -> str:
    """`W²[3, 7]` for an element of θ that is a weight."""
    layer = int(layers_of(params)[position])
    marked = torch.zeros_like(params.theta)
    marked[position] = 1
    j, k = params.split(marked)[f"layer{layer}.weight"].nonzero()[0].tolist()
    return f"W{'⁰¹²³'[layer]}[{j}, {k}]"


def pair(params: Parameters, dtheta: Tensor) -> tuple[int, int]:
    """Positions in θ of one of the most sensitive weights and of another, whose gradients come closest to 32 to 1."""
    of_weights = dtheta * params.vector(lambda name: float(name.endswith(".weight")))
    firsts = of_weights.abs().argsort(descending=True)[:MOST_SENSITIVE]
    miss = (of_weights / dtheta[firsts].unsqueeze(1) - 1 / RATIO).abs()
    first, second = divmod(int(miss.argmin()), len(dtheta))
    return int(firsts[first]), second


def some_of_each_layer(params: Parameters, seed: int) -> Tensor:
    """Positions in θ: of PER_LAYER elements of every layer, drawn at random; of all where it has fewer."""
    generator = torch.Generator().manual_seed(seed)
    layers = layers_of(params)
    of_layer = [(layers == number).nonzero().flatten() for number in layers.unique()]
    return torch.cat([some[torch.randperm(len(some), generator=generator)[:PER_LAYER]] for some in of_layer])


def change(cost: Callable[[Tensor], Tensor], theta: Tensor, position: int, h: float) -> float:
    """C(θ + h eₖ) − C(θ), by two forward passes."""
    moved = theta.clone()
    moved[position] += h
    return (cost(moved) - cost(theta)).item()


def run(data: Dataset, seed: int, run_dir: Path) -> Report:
    network = new_network(data, seed)
    params, theta = network.params, network.params.theta
    x, y = batch(data.train, EXAMPLES)
    dtheta = gradient(network, x, y)

    def cost(theta: Tensor) -> Tensor:
        return costs(network, theta, x, y).mean()

    first, second = pair(params, dtheta)
    names = [name_of(params, position) for position in (first, second)]
    table = [["both changed by", f"ΔC for {names[0]}", f"ΔC for {names[1]}", "ratio"]]
    ratio = 0.0
    for h in NUDGES:
        changes = [change(cost, theta, position, h) for position in (first, second)]
        ratio = changes[0] / changes[1]
        table.append([f"{h:g}", f"{changes[0]:+.2e}", f"{changes[1]:+.2e}", f"{ratio:.2f}"])
    predicted = (dtheta[first] / dtheta[second]).item()
    table.append(["∂C/∂w", f"{dtheta[first]:+.2e}", f"{dtheta[second]:+.2e}", f"{predicted:.2f}"])

    at = some_of_each_layer(params, seed)
    slopes = wiggle(cost, theta, at)
    off = (slopes - dtheta[at]).abs().max().item() / dtheta.abs().max().item()
    able = (slopes.abs() > SENSITIVE * slopes.abs().max()).nonzero().flatten()
    drawn = torch.randint(len(able), (2, PAIRS), generator=torch.Generator().manual_seed(seed))
    a, b = able[drawn]
    off_ratio = (slopes[a] / slopes[b] / (dtheta[at][a] / dtheta[at][b]) - 1).abs().max().item()
    verdict = (
        f"the gradients of the two weights have the ratio {predicted:.2f}. A change of {NUDGES[-1]:g} of each changes "
        f"the cost in the ratio {ratio:.2f}. For {len(at)} weights and biases of all layers, moved one at a time, "
        f"measured and computed gradient differ by at most {off:.0e} of the largest; for {PAIRS:,} pairs of them, "
        f"measured and computed ratio differ by at most {off_ratio:.0e} of it."
    )
    even = abs(predicted / RATIO - 1) < NEAR and abs(ratio / predicted - 1) < NEAR
    holds = even and off < AGREE and off_ratio < AGREE / SENSITIVE

    figure = new_figure(11, 3.8)
    axes = figure.add_subplot(1, 2, 1)
    span = torch.linspace(-2, 2, 41).tolist()
    for position, name, color in zip((first, second), names, (BLUE, GREEN), strict=True):
        slope = dtheta[position].item()
        axes.plot(span, [change(cost, theta, position, h) for h in span], color=color, label=f"{name} moved")
        tangent = [h * slope for h in span]
        axes.plot(span, tangent, "--", color=color, linewidth=1, label=f"slope by backpropagation, {slope:.1e}")
    axes.set_title(f"two weights: one slope is {predicted:.0f} times the other")
    axes.set_xlabel("change of the weight")
    axes.set_ylabel(f"change of the cost of {EXAMPLES} examples")
    axes.legend(frameon=False, fontsize=8)

    axes = figure.add_subplot(1, 2, 2)
    for number, color in ((1, BLUE), (2, GREEN), (3, VERMILION)):
        own = layers_of(params)[at] == number
        axes.loglog(dtheta[at][own].abs(), slopes[own].abs(), ".", color=color, label=f"layer {number}")
    ends = [slopes[slopes != 0].abs().min().item(), slopes.abs().max().item()]
    axes.plot(ends, ends, color="black", linewidth=0.8)
    axes.set_title(f"{len(at)} weights and biases (not shown: {int((slopes == 0).sum())} with gradient 0)")
    axes.set_xlabel("|gradient| by backpropagation")
    axes.set_ylabel("|gradient| by central differences")
    axes.legend(frameon=False, fontsize=8)
    return Report(table, holds, verdict, figure)
