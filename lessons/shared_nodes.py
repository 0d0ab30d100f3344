"""A value that is used twice gets the sum of the gradients of its uses.

b = a + a                 ∂C/∂a = ∂C/∂b + ∂C/∂b
W² = W³ = W               ∂C/∂W = ∂C/∂W² + ∂C/∂W³       a shared parameter
z²_j = Σ_k W²_jk a¹_k     ∂C/∂a¹_k = Σ_j δ²_j W²_jk     a shared node: one use per neuron after it (BP2)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lessons.lesson import Report
from lessons.measure import AGREE, distance, outputs, wiggle
from lessons.runs import batch
from manual_backprop.initializers import INITIALIZERS, initialize
from manual_backprop.losses import Quadratic
from manual_backprop.models.mlp import MLP
from manual_backprop.parameters import Parameters
from manual_backprop.tape import Tape
from training.dashboard.figures import BLUE, GREEN, VERMILION, new_figure
from training.data import Dataset

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "Shared parameters and shared nodes: the gradients add"
CLAIM = (
    "Where a value is used several times (a in b = a + a, a weight matrix in two layers, a neuron by all neurons of "
    "the next layer), its gradient is the sum of the gradients of its uses. Keeping only one of them is wrong."
)
SEE = (
    "Left: a cost that uses a twice. The line whose slope is the sum (green) touches the curve; the line with the "
    "slope of one use alone (orange) crosses it. Middle and right: a shared weight matrix and a hidden layer. The sums "
    "(green) lie on the diagonal, so they are the true gradients; one use alone (blue, orange) does not."
)
SOURCE = (
    'Karpathy, "The spelled-out intro to neural networks and backpropagation: building micrograd" (b = a + a); '
    "3Blue1Brown, chapter 4 (the sum over the neurons of the next layer)"
)
EXAMPLES = 32
WIDTH = 16


@dataclass(frozen=True)
class Shared:
    """A shared value's gradient: what each use contributes, and the one that central differences find."""

    what: str
    uses: Tensor  # (uses, values)
    wiggled: Tensor  # (values,)

    @property
    def error_of_sum(self) -> float:
        return distance(self.uses.sum(dim=0), self.wiggled)

    @property
    def error_of_last(self) -> float:
        """Of keeping the last use only, as a backward pass does that writes where it should add."""
        return distance(self.uses[-1], self.wiggled)


def curve(a: Tensor) -> Tensor:
    """C = ½ sin² b with b = a + a, element by element."""
    return 0.5 * torch.sin(a + a).square()


def added(a: Tensor) -> Shared:
    """The two uses of a in b = a + a."""
    db = torch.sin(a + a) * torch.cos(a + a)
    return Shared("a in b = a + a", torch.stack([db, db]), wiggle(lambda v: curve(v).sum(), a))


def weight(x: Tensor, y: Tensor, seed: int) -> Shared:
    """One matrix W as layer 2 and as layer 3 of a network, through the four equations."""
    model, loss = MLP((x.shape[1], WIDTH, WIDTH, WIDTH, 10), ("sigmoid",) * 4), Quadratic()
    params = Parameters(model.shapes, dtype=x.dtype)
    initialize(params, INITIALIZERS["scaled-normal"], seed)

    def cost(W: Tensor) -> Tensor:
        return loss.forward(outputs(model, {**params, "layer2.weight": W, "layer3.weight": W}, x), y)[0]

    shared = {**params, "layer3.weight": params["layer2.weight"]}
    gradients: dict[str, Tensor] = {}
    tape = Tape()
    output = model.forward(shared, x, tape)
    model.backward(shared, loss.backward(1.0, loss.forward(output, y)[1]), gradients, tape)
    uses = torch.stack([gradients[f"layer{l}.weight"].flatten() for l in (3, 2)])
    return Shared("W in layers 2 and 3", uses, wiggle(cost, params["layer2.weight"]))


def node(x: Tensor, y: Tensor, seed: int) -> Shared:
    """The hidden neurons of one example: each is used by every neuron of the output layer."""
    model, loss = MLP((x.shape[1], WIDTH, 10), ("sigmoid",) * 2), Quadratic()
    params = Parameters(model.shapes, dtype=x.dtype)
    initialize(params, INITIALIZERS["scaled-normal"], seed)
    W, b = params["layer2.weight"], params["layer2.bias"]

    def cost(a: Tensor) -> Tensor:
        return loss.forward(torch.sigmoid(a @ W.T + b).unsqueeze(0), y[:1])[0]

    tape = Tape(observes=True)
    output = model.forward(params, x[:1], tape)
    model.backward(params, loss.backward(1.0, loss.forward(output, y[:1])[1]), {}, tape)
    uses = tape.deltas["layer2"].view(-1, 1) * W  # δ²_j W²_jk: what neuron j contributes
    return Shared("a¹ in all of z²", uses, wiggle(cost, tape.outputs["layer1.a"][0]))


def draw_slopes(axes: Axes, at: Tensor) -> None:
    """The curve of C = ½ sin² (a + a), and at one point the lines with the slopes of all uses and of one."""
    a, uses = torch.linspace(-0.2, 0.9, 111, dtype=at.dtype), added(at).uses
    axes.plot(a, curve(a), color="black", label="C = ½ sin² (a + a)")
    slopes = (uses.sum(), GREEN, "slope: sum of both uses"), (uses[0], VERMILION, "slope: one use alone")
    for slope, color, label in slopes:
        axes.plot(a, curve(at) + slope * (a - at), color=color, linestyle="--", label=label)
    axes.plot(at, curve(at), "o", color="black")
    axes.set_ylim(-0.1, 0.8)
    axes.set_title("a in b = a + a")
    axes.set_xlabel("a")
    axes.set_ylabel("C")
    axes.legend(frameon=False, fontsize=8)


def run(data: Dataset, seed: int, run_dir: Path) -> Report:
    x, y = batch(data.train, EXAMPLES)
    points = torch.randn(50, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
    shared = [added(points), weight(x, y, seed), node(x, y, seed)]
    table = [["shared value", "uses", "gradients", "error of the sum", "error of one use alone"]]
    table += [
        [s.what, f"{len(s.uses)}", f"{s.wiggled.numel()}", f"{s.error_of_sum:.1e}", f"{s.error_of_last:.0%}"]
        for s in shared
    ]
    worst, least = max(s.error_of_sum for s in shared), min(s.error_of_last for s in shared)
    verdict = (
        f"the sums agree with central differences, with relative errors of {worst:.0e} at most. If only the last use "
        f"is kept, the relative error is at least {least:.0%}."
    )

    figure = new_figure(11, 3.8)
    draw_slopes(figure.add_subplot(1, 3, 1), torch.tensor([0.3], dtype=x.dtype))
    for column, s in enumerate(shared[1:], start=2):
        axes = figure.add_subplot(1, 3, column)
        axes.plot(s.wiggled, s.wiggled, color="black", linewidth=0.8)
        axes.plot(s.wiggled, s.uses[0], ".", color=BLUE, label="first use alone")
        axes.plot(s.wiggled, s.uses[-1], ".", color=VERMILION, label="last use alone")
        axes.plot(s.wiggled, s.uses.sum(dim=0), "x", color=GREEN, label="sum of all uses")
        axes.set_title(s.what)
        axes.set_xlabel("gradient by central differences")
        axes.set_ylabel("gradient by backpropagation")
        axes.legend(frameon=False, fontsize=8)
    return Report(table, worst < AGREE and least > 0.1, verdict, figure)
