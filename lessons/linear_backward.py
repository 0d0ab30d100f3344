"""The backward pass is a network too, and a linear one: δ of each layer is a fixed matrix times δ of the next.

    δˡ = δˡ⁺¹ Wˡ⁺¹ diag(σ′(zˡ))         BP2 for one example, whose zˡ the forward pass has fixed

So it obeys superposition, B(α u + β v) = α B(u) + β B(v) for any two gradients u, v of the outputs, and
is one matrix as a whole: each of its rows is the result for one output alone.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from lessons.lesson import Report
from lessons.measure import distance, outputs
from lessons.runs import batch, learner
from manual_backprop.tape import Tape
from training.dashboard.figures import BLUE, GREEN, VERMILION, new_figure
from training.data import Dataset
from training.families.configure import configure
from training.learners.base import without_activations

TITLE = "The backward pass is itself a network, linear in δ"
CLAIM = (
    "Backpropagation runs a second network from the outputs to the inputs, with the same weights. Unlike the first it "
    "is linear: its result for the sum of two output gradients is the sum of its results for each."
)
SEE = (
    "Each group of three bars is one hidden neuron: its −δ, so how it should change, if the output of the 3 should go "
    "up (blue), if the output of the 8 should go down (orange), and both (green). The green bar is always the sum of "
    "the other two. Left: the second hidden layer. Right: the first, one layer further back."
)
SOURCE = "Nielsen, chapter 2 (http://neuralnetworksanddeeplearning.com/chap2.html); Rojas, Neural Networks, chapter 7"
TRIALS = 20
AGREE = 1e-12
NETWORK = configure(hidden=(16, 16), activation=("sigmoid",), dtype="float64")


def deviation(together: Tensor, apart: Tensor) -> float:
    """‖f(αu + βv) − (α f(u) + β f(v))‖ / ‖f(αu + βv)‖: 0 for a linear f"""
    return distance(apart, together)


def run(data: Dataset, seed: int, run_dir: Path) -> Report:
    network = learner(NETWORK, data)
    model, params = network.model, network.params
    x, _ = batch(data.train, 2)

    def backward(d_output: Tensor) -> dict[str, Tensor]:
        """Every gradient that follows from the outputs' (1, 10), after the same forward pass each time."""
        gradients: dict[str, Tensor] = {}
        tape = Tape(observes=True, need_dx=True)
        model.forward(params, x[:1], tape)
        dx = model.backward(params, d_output, gradients, tape)
        assert dx is not None
        deltas = {f"δ of {name}": delta for name, delta in without_activations(tape.deltas).items()}
        return deltas | {"∂C/∂x": dx} | {f"∂C/∂ {name}": gradient for name, gradient in gradients.items()}

    generator = torch.Generator().manual_seed(seed)
    worst: dict[str, float] = {}
    forward = 0.0
    for _ in range(TRIALS):
        u, v = torch.randn(2, 1, 10, generator=generator, dtype=x.dtype)
        alpha, beta = torch.randn(2, generator=generator, dtype=x.dtype)
        together, of_u, of_v = backward(alpha * u + beta * v), backward(u), backward(v)
        for name in together:
            apart = alpha * of_u[name] + beta * of_v[name]
            worst[name] = max(worst.get(name, 0.0), deviation(together[name], apart))
        a, of_first, of_second = (outputs(model, params, p) for p in (alpha * x[:1] + beta * x[1:], x[:1], x[1:]))
        forward = max(forward, deviation(a, alpha * of_first + beta * of_second))
    rows = {name: backward(e.unsqueeze(0)) for name, e in zip(data.classes, torch.eye(10, dtype=x.dtype), strict=True)}
    matrix = torch.cat([of_one["∂C/∂x"] for of_one in rows.values()])  # (10, 784)
    as_matrix = deviation(backward(u)["∂C/∂x"], u @ matrix)

    table = [["map", "largest deviation from superposition"]]
    table += [[f"backward, to {name}", f"{value:.1e}"] for name, value in worst.items()]
    table += [["backward to ∂C/∂x, written as one 10 × 784 matrix", f"{as_matrix:.1e}"]]
    table += [["forward, to the outputs", f"{forward:.1e}"]]
    largest = max(*worst.values(), as_matrix)
    verdict = (
        f"for {TRIALS} random pairs of output gradients, the backward pass deviates from superposition by "
        f"{largest:.0e} at most, which is rounding; the forward pass, for two pictures, by {forward:.0%}."
    )

    up_3, down_8 = torch.zeros(2, 1, 10, dtype=x.dtype)
    up_3[0, 3], down_8[0, 8] = -1.0, 1.0  # ∂C/∂a: negative where a should go up
    bars = (
        ("output 3 up", up_3, -0.27, BLUE),
        ("output 8 down", down_8, 0, VERMILION),
        ("both", up_3 + down_8, 0.27, GREEN),
    )
    figure = new_figure(11, 3.8)
    for column, layer in enumerate(("layer2", "layer1"), start=1):
        axes = figure.add_subplot(1, 2, column)
        for label, d_output, shift, color in bars:
            up = -backward(d_output)[f"δ of {layer}"][0]
            axes.bar(torch.arange(len(up)).numpy() + shift, up.numpy(), width=0.27, color=color, label=label)
        axes.set_title(f"−δ of {layer}: green is the sum of blue and orange")
        axes.set_xlabel("neuron")
        axes.set_ylabel("−δ: above 0, z should rise")
        axes.legend(frameon=False)
    return Report(table, largest < AGREE and forward > 0.01, verdict, figure)
