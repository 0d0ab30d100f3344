"""What a trained network's neurons look for: their weights as pictures, and the picture that excites each most.

x ← x + η ∂a/∂x / ‖∂a/∂x‖                gradient ascent on the pixels, kept from 0 to 1; the weights stay as they are
∂a/∂x = δ¹ W¹                            BP2 carried on to the input, from ∂a/∂output = 1 for one neuron, 0 for others

For a neuron of the first layer the best picture is known: white where its weight is positive, else black.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from lessons.drawing import show_signed
from lessons.lesson import Report
from lessons.measure import distance, outputs
from lessons.runs import batch, first, train
from manual_backprop.models.mlp import MLP
from manual_backprop.tape import Tape
from training.dashboard.figures import new_figure
from training.data import Dataset
from training.families.configure import configure
from training.prediction import load_trained

TITLE = "What the neurons detect: no strokes, and no digits either"
CLAIM = (
    "The hidden neurons of a trained network do not detect little edges and strokes, as one would hope, but patterns "
    "all over the picture; and the network is as confident about pictures that show no digit as about real digits."
)
SEE = (
    "Top: the weights of the 16 neurons of the first layer, blue positive, orange negative. They are blots all over "
    "the picture, not strokes. Middle: for each output 0 to 9, a picture that makes it nearly 1, found by gradient "
    "ascent from noise. It still looks like noise. Bottom: for comparison, the mean picture of each digit."
)
SOURCE = (
    "3Blue1Brown, chapter 2 (https://www.3blue1brown.com/lessons/gradient-descent); gradient ascent on the input: "
    "Erhan et al. 2009, Olah et al. 2017 (https://distill.pub/2017/feature-visualization/)"
)
NETWORK = configure(hidden=(16, 16), epochs=20, histogram_every=0)
NOISE = 1_000  # random pictures: every pixel uniform from 0 to 1
STARTS = 16  # of them from which the ascent starts; the best that it reaches counts
STEPS, RATE = 200, 1.0  # η falls evenly to 0
WIGGLE = 1e-5  # of a central difference: its own error is about WIGGLE² = 1e-10
AGREE = 1e-7
AS_SURE = 0.99  # of the most that a real digit of the class gets
UNLIKE = 0.02  # at most so many of the real digits are less like the mean digit of their class
PATCH, STROKE = 7, 0.5  # what looks for one edge or stroke has most of its Σw² in one patch of 7 × 7 pixels


@dataclass(frozen=True)
class Layer:
    """What the n neurons of a layer reach at most: on noise, on real pictures (of the neuron's class), by ascent."""

    noise: Tensor  # (n,)
    real: Tensor  # (n,)
    ascended: Tensor  # (n,)
    pictures: Tensor  # (n, 784), by ascent


def up_to(model: MLP, layer: int) -> MLP:
    """The network that ends with a layer, whose neurons are its outputs; its parameters are the network's own."""
    return MLP(model.sizes[: layer + 1], model.activations[:layer])


def input_gradient(model: MLP, params: Mapping[str, Tensor], x: Tensor, d_output: Tensor) -> Tensor:
    """∂(d_output · a)/∂x (B, 784), for each picture of x (B, 784) by itself"""
    tape = Tape(need_dx=True)
    model.forward(params, x, tape)
    dx = model.backward(params, d_output, {}, tape)
    assert dx is not None
    return dx


def wiggled_gradient(model: MLP, params: Mapping[str, Tensor], x: Tensor, d_output: Tensor) -> Tensor:
    """The same of one picture (1, 784), pixel by pixel by central differences: no backpropagation."""
    steps = WIGGLE * torch.eye(x.shape[1], dtype=x.dtype)
    above, below = (outputs(model, params, pictures) @ d_output[0] for pictures in (x + steps, x - steps))
    return ((above - below) / (2 * WIGGLE)).unsqueeze(0)


def ascend(model: MLP, params: Mapping[str, Tensor], starts: Tensor) -> tuple[Tensor, Tensor]:
    """The activation (n_L,) of each output neuron at the best picture (n_L, 784) that ascent finds for it."""
    neurons = model.sizes[-1]
    x = starts.repeat_interleave(neurons, dim=0)  # each neuron from each start
    one = torch.eye(neurons, dtype=x.dtype).repeat(len(starts), 1)
    for step in range(STEPS):
        dx = input_gradient(model, params, x, one)
        length = dx.norm(dim=1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
        x = (x + RATE * (1 - step / STEPS) * dx / length).clamp(0, 1)
    reached = (outputs(model, params, x) * one).sum(dim=1).view(len(starts), neurons)
    value, start = reached.max(dim=0)
    return value, x.view(len(starts), neurons, -1)[start, torch.arange(neurons)]


def examine(model: MLP, params: Mapping[str, Tensor], layer: int, x: Tensor, y: Tensor, noise: Tensor) -> Layer:
    part = up_to(model, layer)
    real = outputs(part, params, x)
    if layer == len(model.activations):
        real = real * torch.eye(model.sizes[-1], dtype=x.dtype)[y]  # a digit counts for its own class only
    ascended, pictures = ascend(part, params, noise[:STARTS])
    return Layer(outputs(part, params, noise).amax(dim=0), real.amax(dim=0), ascended, pictures)


def likeness(pictures: Tensor, others: Tensor) -> Tensor:
    """Correlation (N,) of the pixels of each picture (N, 784) with those of the other: 1 is alike, 0 unrelated."""
    p, q = (v - v.mean(dim=1, keepdim=True) for v in (pictures, others))
    return (p * q).sum(dim=1) / (p.norm(dim=1) * q.norm(dim=1))


def locality(W: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The largest part (n,) of each neuron's Σw² that lies in one patch of 7 × 7 pixels; W is (n, 784)."""
    squares = W.view(-1, *shape).square()
    patches = squares.unfold(1, PATCH, 1).unfold(2, PATCH, 1).sum(dim=(3, 4))
    return patches.amax(dim=(1, 2)) / squares.sum(dim=(1, 2))


def run(data: Dataset, seed: int, run_dir: Path) -> Report:
    data = first(data, 10_000, 2_000)
    train(replace(NETWORK, seed=seed), data, run_dir / "network")
    learned = load_trained(run_dir / "network").learner
    model, params = learned.model, {name: p.double() for name, p in learned.params.items()}
    assert isinstance(model, MLP)
    x, y = batch(data.train, len(data.train))
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(NOISE, x.shape[1], generator=generator, dtype=x.dtype)
    one, two, output = (examine(model, params, layer, x, y, noise) for layer in (1, 2, 3))

    means = torch.stack([x[y == k].mean(dim=0) for k in range(10)])
    of_real, of_ascended = likeness(x, means[y]), likeness(output.pictures, means)
    less = torch.stack([(of_real[y == k] < of_ascended[k]).double().mean() for k in range(10)])
    table = [["largest value of", "on noise", "on digits", "by ascent", "correlation: digits, ascent"]]
    for k, name in enumerate(data.classes):
        reached = [f"{v[k]:.3f}" for v in (output.noise, output.real, output.ascended)]
        table.append([f"output {name}", *reached, f"{of_real[y == k].mean():.2f}, {of_ascended[k]:.2f}"])
    for layer, found in {"layer 2": two, "layer 1": one}.items():
        table.append([f"{layer}, mean", *(f"{v.mean():.3f}" for v in (found.noise, found.real, found.ascended)), ""])

    wish = torch.randn(1, 10, generator=generator, dtype=x.dtype)
    by_hand, wiggled = (gradient(model, params, noise[:1], wish) for gradient in (input_gradient, wiggled_gradient))
    error = distance(by_hand, wiggled)
    patch = locality(params["layer1.weight"], data.shape)
    sure = (output.ascended / output.real).min().item()
    on_noise, on_test = (
        outputs(model, params, pictures).amax(dim=1).mean() for pictures in (noise, batch(data.test, 2_000)[0])
    )
    holds = error < AGREE and sure > AS_SURE and less.max().item() < UNLIKE and patch.mean().item() < STROKE
    verdict = (
        f"gradient ascent from noise brings every output to at least {sure:.1%} of its value for the best real digit, "
        f"with pictures that correlate less with the mean digit than {1 - less.max().item():.1%} of the real digits. "
        f"The best patch of {PATCH} × {PATCH} pixels has {patch.mean():.0%} of a first-layer neuron's Σw² (mean). "
        f"∂a/∂x agrees with central differences, to {error:.0e}. The largest output is {on_noise:.2f} on average for "
        f"plain noise and {on_test:.2f} for test digits."
    )

    figure = new_figure(11, 3.8)
    rows = figure.subfigures(3, 1, squeeze=False).flat
    W = params["layer1.weight"]
    high = W.abs().quantile(0.99).item()
    pictures = (
        ("weights of the 16 neurons of layer 1: blue positive, orange negative", W),
        ("pictures found by gradient ascent from noise for the outputs 0 to 9", output.pictures),
        ("the mean digit of each class", means),
    )
    for row, (title, values) in zip(rows, pictures, strict=True):
        row.suptitle(title, fontsize=9)
        for axes, value in zip(row.subplots(1, len(values)), values, strict=True):
            picture = value.view(data.shape)
            if values is W:
                show_signed(axes, picture, high)
            else:
                axes.imshow(picture.numpy(), cmap="gray", vmin=0, vmax=1)
            axes.axis("off")
    return Report(table, holds, verdict, figure)
