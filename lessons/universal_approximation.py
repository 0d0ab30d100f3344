"""One hidden layer can come as near to a function as one likes, given enough neurons: trained, and set by hand.

a(x) = W² σ(W¹ x + b¹) + b²              one hidden layer of n neurons, one linear output

By hand (Nielsen, chapter 4): a sigmoid of large weight w is a step at s = −b/w, and two of them, with output weights
h and −h, are a bump of height h. N bumps side by side, each as high as f in its middle, are off by at most

max |f′| / 2N                            twice the neurons (n = 2N), half the error: no training, but a proof
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from math import cos, pi, sqrt
from pathlib import Path

import torch
from torch import Tensor

from lessons.lesson import Curve, Report
from lessons.measure import outputs
from lessons.runs import train
from manual_backprop.losses import Quadratic
from manual_backprop.models.mlp import MLP
from manual_backprop.optimizers import Adam
from manual_backprop.parameters import Parameters
from manual_backprop.tape import Tape
from training.dashboard.figures import BLUE, COLORS, VERMILION, new_figure
from training.data import Dataset, load, points_rule
from training.families.mlp import MLPConfig
from training.prediction import load_trained

TITLE = "One hidden layer approximates any function, if it is wide enough"
CLAIM = (
    "A network with one hidden layer can approximate any continuous function as closely as one likes, given enough "
    "hidden neurons. Wider networks do better, and bumps made of pairs of steep sigmoids show why, without training."
)
SEE = (
    "Left: the border that trained networks draw between two classes of points (lines) and the true one (edge of the "
    "shaded area). One hidden neuron draws a straight line; more neurons follow the curve. Middle: one neuron makes a "
    "single step of the function, 64 neurons follow it (green on gray); black bumps set by hand follow it as a "
    "staircase. Right: the error falls as neurons are added, and the bumps stay below the proven bound."
)
SOURCE = "Cybenko 1989; Nielsen, chapter 4 (http://neuralnetworksanddeeplearning.com/chap4.html)"
WIDTHS = (1, 2, 4, 16, 64, 256)
CLASSIFIERS, FITS, BUMPS = WIDTHS[:4], WIDTHS[:5], WIDTHS[1:]
POINTS = MLPConfig(
    dataset="points",
    activation=("tanh",),
    loss="softmax-cross-entropy",
    init="xavier",
    optimizer="adam",
    lr=0.05,
    epochs=20,
    histogram_every=0,
)
STEPS, RATE = 1_500, 0.02  # of a fit
STEEPNESS = 40.0  # w of a fit's neurons at the start: they rise within about 1/40 of [0, 1]
BUMP_STEEPNESS = 1_000.0  # w of a bump's steps, times its width
STRAIGHT, RULE = 0.2, 0.03  # parts of the square that are wrong: at least with a straight line, at most in the end
FELL = 20  # times, the largest error of a fit from 1 neuron to 64
QUARTERED = 0.28  # about a quarter: the error by hand with four times the neurons


def f(x: Tensor) -> Tensor:
    """0.2 + 0.4x² + 0.3x sin 15x + 0.05 cos 50x, Nielsen's example, on [0, 1]"""
    return 0.2 + 0.4 * x**2 + 0.3 * x * torch.sin(15 * x) + 0.05 * torch.cos(50 * x)


def interval(count: int) -> Tensor:
    """x from 0 to 1, (count, 1)"""
    return torch.linspace(0, 1, count, dtype=torch.float64).unsqueeze(1)


def largest_error(model: MLP, params: Mapping[str, Tensor]) -> float:
    """max |a(x) − f(x)| over 20,001 x"""
    x = interval(20_001)
    return (outputs(model, params, x) - f(x)).abs().max().item()


def fit(width: int, seed: int) -> tuple[MLP, Parameters, Curve]:
    """A network trained on 201 points of f, all of them in every step, by Adam; and its cost by step.

    Its hidden neurons start as steps evenly spread over [0, 1], b = −w s; their output weights at random.
    """
    model, loss, optimizer = MLP((1, width, 1), ("tanh", "identity")), Quadratic(), Adam()
    params = Parameters(model.shapes, dtype=torch.float64)
    params["layer1.weight"] = torch.full((width, 1), STEEPNESS, dtype=torch.float64)
    params["layer1.bias"] = -STEEPNESS * (torch.arange(width, dtype=torch.float64) + 0.5) / width
    draws = torch.randn(1, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    params["layer2.weight"] = 0.3 * draws / sqrt(width)
    gradients, state = params.zeros_like(), optimizer.init(params.theta)
    x = interval(201)
    costs = []
    for step in range(1, STEPS + 1):
        tape = Tape()
        output = model.forward(params, x, tape)
        C, cache = loss.forward(output, f(x))
        model.backward(params, loss.backward(1.0, cache), gradients, tape)
        lr, t = torch.tensor([RATE * (1 + cos(pi * step / STEPS)) / 2, step], dtype=torch.float64)
        optimizer.update(params.theta, gradients.theta, state, lr, t, None, params.split)
        if step % 50 == 0:
            costs.append((step, C.item()))
    return model, params, costs


def bumps(count: int) -> tuple[MLP, Parameters]:
    """N bumps 1/N wide, set by hand; the first begins and the last one ends well outside of [0, 1]."""
    model = MLP((1, 2 * count, 1), ("sigmoid", "identity"))
    params = Parameters(model.shapes, dtype=torch.float64)
    edges = torch.linspace(0, 1, count + 1, dtype=torch.float64)
    heights = f((edges[:-1] + edges[1:]) / 2)
    edges[0], edges[-1] = -1, 2
    w, up_and_down = BUMP_STEEPNESS * count, torch.stack([edges[:-1], edges[1:]], dim=1).flatten()
    params["layer1.weight"] = torch.full((2 * count, 1), w, dtype=torch.float64)
    params["layer1.bias"] = -w * up_and_down
    params["layer2.weight"] = torch.stack([heights, -heights], dim=1).view(1, -1)
    return model, params


def bound(count: int) -> float:
    """max |f′| (1/2N + 0.28/w): the second term because a step is not quite vertical, as max d σ(−w d) < 0.28/w"""
    h = 1e-5
    x = interval(round(1 / h))
    steepest = ((f(x + h) - f(x - h)) / (2 * h)).abs().max().item()
    return steepest * (0.5 + 0.28 / BUMP_STEEPNESS) / count


def square(count: int = 200) -> Tensor:
    """The middles of count × count parts of [0, 10]², (count², 2), y first to run."""
    side = 10 * (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return torch.cartesian_prod(side, side)


def says_blue(width: int, seed: int, run_dir: Path) -> Tensor:
    """Which parts of the square a network calls blue that was trained on the points of the data set "points"."""
    train(replace(POINTS, hidden=(width,), seed=seed), load("points"), run_dir)
    network = load_trained(run_dir)
    return network.outputs(((square() - 5) / 5).float()).argmax(dim=1) == 1


def run(data: Dataset, seed: int, run_dir: Path) -> Report:
    truth = points_rule(square())
    areas = {width: says_blue(width, seed, run_dir / f"points-{width}") for width in CLASSIFIERS}
    wrong = {width: (area != truth).double().mean().item() for width, area in areas.items()}
    fits = {width: fit(width, seed) for width in FITS}
    error = {width: largest_error(model, params) for width, (model, params, _) in fits.items()}
    by_hand = {width: largest_error(*bumps(width // 2)) for width in BUMPS}
    bounds = {width: bound(width // 2) for width in BUMPS}
    table = [["hidden neurons", "points: area wrong", "curve: largest error", "bumps: largest error", "bound"]]
    for width in WIDTHS:
        part = f"{wrong[width]:.1%}" if width in wrong else ""
        errors = [f"{e[width]:.4f}" if width in e else "" for e in (error, by_hand, bounds)]
        table.append([f"{width}", part, *errors])
    falls = all(error[wide] < error[narrow] for narrow, wide in pairwise(FITS))
    falls &= error[1] > FELL * error[64] and wrong[1] > STRAIGHT and wrong[16] < RULE
    bounded = all(by_hand[width] <= bounds[width] for width in BUMPS) and by_hand[256] < QUARTERED * by_hand[64]
    verdict = (
        f"one neuron divides the square by a straight line and classifies {wrong[1]:.0%} of its area wrongly, 16 "
        f"neurons {wrong[16]:.1%}. Trained on a curve, one neuron has a largest error of {error[1]:.2f}, 64 of "
        f"{error[64]:.4f}. Bumps set by hand have {by_hand[64]:.3f} with 64 neurons (bound {bounds[64]:.3f}) and "
        f"{by_hand[256]:.3f} with 256 (bound {bounds[256]:.3f})."
    )

    figure = new_figure(11, 3.8)
    left, middle, right = figure.subplots(1, 3)
    ground = truth.view(200, 200).T.numpy()
    left.imshow(ground, origin="lower", extent=(0, 10, 0, 10), cmap="Blues", vmax=3, interpolation="nearest")
    side = square()[:200, 1].numpy()
    for (width, area), color in zip(areas.items(), COLORS, strict=False):
        left.contour(side, side, area.view(200, 200).T.numpy(), levels=[0.5], colors=color)
        left.plot([], [], color=color, label=f"{width}")
    left.legend(title="hidden neurons", loc="upper left", ncols=2, frameon=False, fontsize=8, title_fontsize=8)
    left.set_title("decision boundaries and the true area")
    left.set_xlabel("x")
    left.set_ylabel("y")
    x = interval(1_001)
    middle.plot(x, f(x), color="black", linewidth=3, alpha=0.3, label="f(x)")
    for width, color in zip((1, 4, 64), COLORS, strict=False):
        model, params, _ = fits[width]
        middle.plot(x, outputs(model, params, x), color=color, linewidth=1, label=f"{width} trained")
    model, params = bumps(16)
    middle.plot(x, outputs(model, params, x), color="black", linewidth=0.7, label="16 bumps by hand")
    middle.set_title("a curve, approximated by one hidden layer")
    middle.set_xlabel("x")
    middle.set_ylabel("output")
    right.plot(BUMPS, list(bounds.values()), "--", color="black", linewidth=1, label="bumps: bound")
    right.plot(BUMPS, list(by_hand.values()), ".-", color=BLUE, label="bumps by hand")
    right.plot(FITS, list(error.values()), ".-", color=VERMILION, label="trained")
    right.loglog()
    right.set_xticks(WIDTHS, map(str, WIDTHS))
    right.minorticks_off()
    right.set_title("largest error on [0, 1]")
    right.set_xlabel("hidden neurons")
    right.set_ylabel("max |output − f(x)|")
    for axes in (middle, right):
        axes.legend(frameon=False, fontsize=8)
    charts = {"cost of the trained curve": {f"{width} neurons": costs for width, (_, _, costs) in fits.items()}}
    return Report(table, falls and bounded, verdict, figure, charts)
