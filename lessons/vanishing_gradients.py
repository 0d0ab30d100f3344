"""How the error δ changes its size on the way back through a deep network, by activation and initial weights.

δˡ = δˡ⁺¹ Wˡ⁺¹ ⊙ σ′(zˡ)                      BP2

Each element is a sum of n random weights times elements of δˡ⁺¹, so at the start of training a layer multiplies the
root mean square (RMS) of δ by a factor that the forward pass alone foretells:

factor = √n · RMS(w) · RMS(σ′(z))            at most √n · RMS(w) / 4 for a sigmoid, whose σ′ is at most ¼;
                                             √(n/2) · RMS(w) for a relu, whose σ′ is 1 for half of its z and else 0

Large weights do not mend a sigmoid: what √n · RMS(w) gains, σ′ loses, because the z are large and saturate.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lessons.lesson import Curve, Report
from lessons.runs import batch, curve, first, learner, train
from manual_backprop.layers.activations import ACTIVATIONS
from training.dashboard.figures import COLORS, new_figure
from training.data import Dataset
from training.families.mlp import MLPConfig

TITLE = "Deep networks: δ vanishes or explodes, layer by layer"
CLAIM = (
    "On its way back through a deep network, δ is multiplied by about the same factor in every layer. For sigmoids "
    "with ordinary initial weights the factor is less than ¼, so the first layers of a deep network hardly learn. For "
    "relus with too large weights δ explodes. Xavier's initial weights for tanh and He's for relu keep its size."
)
SEE = (
    "Left: the size of δ in each of 30 layers, on a logarithmic scale, read from right to left. The lines are nearly "
    "straight: every layer multiplies δ by about the same factor. Sigmoids fall steeply, relus with too large weights "
    "rise steeply, tanh with Xavier's weights and relu with He's stay level. Right: six hidden layers of sigmoids stay "
    "near guessing (10%); one layer of them learns, and so do six of tanh or relu with fitting weights."
)
SOURCE = (
    "Hochreiter 1991; Nielsen, chapter 5 (http://neuralnetworksanddeeplearning.com/chap5.html); "
    "Glorot and Bengio 2010; He et al. 2015"
)
WIDTH, DEPTH, EXAMPLES = 100, 30, 100
STARTS = (
    ("sigmoid", "scaled-normal"),
    ("sigmoid", "standard-normal"),
    ("tanh", "xavier"),
    ("relu", "xavier"),
    ("relu", "he"),
    ("relu", "standard-normal"),
)
AS_PREDICTED = 0.05  # of a factor; it is the size of sums of only 100 random terms, which no formula knows exactly
KEPT = 0.1  # how far from 1 a factor may be that keeps δ; twice as far would be 500-fold in 30 layers
LEARNED, GUESSED = 0.5, 0.2  # test accuracies; always saying the commonest digit is right in 0.13

TRAINED = MLPConfig(
    hidden=(50,),
    loss="softmax-cross-entropy",
    lr=0.1,
    schedule="constant",
    batch_size=30,
    epochs=4,
    log_every=20,
    histogram_every=0,
)
DEEP = 6 * TRAINED.hidden
RUNS: dict[str, dict[str, Any]] = {
    "sigmoid-1-layer": {},
    "sigmoid-6-layers": {"hidden": DEEP},
    "tanh-xavier-6-layers": {"hidden": DEEP, "activation": ("tanh",), "init": "xavier"},
    "relu-he-6-layers": {"hidden": DEEP, "activation": ("relu",), "init": "he"},
}


@dataclass(frozen=True)
class Passage:
    """RMS of δ¹ … δ³⁰, those of the hidden layers, and for each step between two of them the factor foretold."""

    sizes: Tensor  # (30,)
    foretold: Tensor  # (29,)

    @property
    def factor(self) -> float:
        """What a layer multiplied δ by: from the slope of the straight line through (l, ln RMS(δˡ))."""
        l = torch.arange(len(self.sizes), dtype=self.sizes.dtype)
        l = l - l.mean()
        return torch.exp(-(l @ self.sizes.log()) / (l @ l)).item()

    @property
    def predicted(self) -> float:
        """The geometric mean of the factors foretold."""
        return self.foretold.log().mean().exp().item()


def rms(v: Tensor) -> Tensor:
    """√(mean v²)"""
    return v.square().mean().sqrt()


def slope(activation: str, z: Tensor) -> Tensor:
    """σ′(z) by moving z, (σ(z + h) − σ(z − h)) / 2h, with a step h that is felt by large z, too."""
    h, sigma = 1e-6 * (1 + z.abs()), ACTIVATIONS[activation].value
    return (sigma(z + h) - sigma(z - h)) / (2 * h)


def passage(data: Dataset, activation: str, init: str, seed: int) -> Passage:
    """One forward and one backward pass through 30 hidden layers of 100 neurons, at the initial weights."""
    start: dict[str, Any] = {"activation": (activation,), "init": init, "seed": seed}
    network = learner(MLPConfig(hidden=(WIDTH,) * DEPTH, loss="softmax-cross-entropy", dtype="float64", **start), data)
    result = network.backpropagate(*batch(data.train, EXAMPLES))
    sizes = [rms(result.deltas[f"layer{l}"]) for l in range(1, DEPTH + 1)]
    foretold = [
        sqrt(WIDTH) * rms(network.params[f"layer{l + 1}.weight"]) * rms(slope(activation, result.outputs[f"layer{l}"]))
        for l in range(1, DEPTH)
    ]
    return Passage(torch.stack(sizes), torch.stack(foretold))


def learn(data: Dataset, seed: int, run_dir: Path) -> dict[str, Curve]:
    """The test accuracy of shallow and deep networks after each epoch, all trained in the same way."""
    return {
        name: curve(train(replace(TRAINED, seed=seed, **changes), data, run_dir / name), "accuracy/test")
        for name, changes in RUNS.items()
    }


def run(data: Dataset, seed: int, run_dir: Path) -> Report:
    passages = {start: passage(data, *start, seed) for start in STARTS}
    accuracy = learn(first(data, 3_000, 1_000), seed, run_dir)
    table = [["30 hidden layers", "predicted factor", "measured", "RMS, δ¹ / δ³⁰"]]
    table += [
        [f"{activation}, {init}", f"{p.predicted:.3f}", f"{p.factor:.3f}", f"{p.sizes[0] / p.sizes[-1]:.1e}"]
        for (activation, init), p in passages.items()
    ]
    factor = {start: p.factor for start, p in passages.items()}
    worst = max(abs(p.factor / p.predicted - 1) for p in passages.values())
    sigmoid, explosion = factor["sigmoid", "scaled-normal"], factor["relu", "standard-normal"]
    kept = factor["tanh", "xavier"], factor["relu", "he"]
    last = {name: points[-1][1] for name, points in accuracy.items()}
    holds = worst < AS_PREDICTED and sigmoid < 0.25 and explosion > 2 and all(abs(f - 1) < KEPT for f in kept)
    holds &= all(value < GUESSED if name == "sigmoid-6-layers" else value > LEARNED for name, value in last.items())
    verdict = (
        f"a layer of sigmoids multiplies δ by {sigmoid:.2f}, tanh with Xavier's weights by {kept[0]:.2f}, relu with "
        f"He's by {kept[1]:.2f} and with N(0, 1) by {explosion:.1f}, all within {worst:.0%} of what the forward pass "
        f"predicts. After the same training, 6 hidden layers of sigmoids reach {last['sigmoid-6-layers']:.0%} test "
        f"accuracy (guessing: 10%), one layer {last['sigmoid-1-layer']:.0%}, and 6 of relu "
        f"{last['relu-he-6-layers']:.0%}."
    )

    figure = new_figure(11, 3.8)
    left, right = figure.subplots(1, 2)
    rms_by_layer: dict[str, Curve] = {}
    for (start, p), color in zip(passages.items(), COLORS, strict=False):
        name = ", ".join(start)
        points = list(enumerate(p.sizes.tolist(), start=1))
        left.plot(*zip(*points, strict=True), ".-", color=color, label=name)
        rms_by_layer[name.replace(", ", "-")] = points
    left.set_yscale("log")
    left.set_title("straight lines: the same factor in every layer")
    left.set_xlabel("hidden layer l (backpropagation goes from right to left)")
    left.set_ylabel("RMS of δˡ, before training")
    left.legend(frameon=False, fontsize=8)
    for (name, accuracies), color in zip(accuracy.items(), ("black", COLORS[0], COLORS[2], COLORS[4]), strict=True):
        right.plot(*zip(*accuracies, strict=True), ".-", color=color, label=name)
    right.set_title("the consequence: six layers of sigmoids do not learn")
    right.set_xlabel("step")
    right.set_ylabel("accuracy on test pictures")
    right.set_ylim(0, 1)
    right.legend(frameon=False, fontsize=8)
    return Report(table, holds, verdict, figure, {"RMS of delta by layer": rms_by_layer, "accuracy": accuracy})
