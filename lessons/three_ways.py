"""Three ways to make a neuron more active: its bias, its weights, and the activations that come to it.

    z = b + Σ_k w_k a_k,  C = (σ(z) − 1)²,  δ = ∂C/∂z              one output neuron, which should say 1

    ∂C/∂b = δ        ∂C/∂w_k = δ a_k        ∂C/∂a_k = δ w_k        BP3, BP4, and the first factor of BP2

So the best change of the weights is in proportion to the activations, and that of the activations in proportion to the
weights. A nudge Δv of length r along the negative gradient should change the cost by

    C(v + Δv) − C(v) = −r ‖∂C/∂v‖ + O(r²)
"""

from __future__ import annotations

from math import log2
from pathlib import Path

import torch
from torch import Tensor

from lessons.lesson import Report
from lessons.measure import AGREE, distance, new_network, outputs, train_to, wiggle
from lessons.runs import batch
from manual_backprop.losses import SquaredError
from manual_backprop.models.mlp import MLP
from manual_backprop.tape import Tape
from training.dashboard.figures import BLUE, GREEN, VERMILION, new_figure
from training.data import Dataset

TITLE = "Three ways to raise an output neuron"
CLAIM = (
    "The bias, the weights and the activations of the layer before can all make a neuron more active. The cost falls "
    "most when the weights are changed in proportion to the activations that they multiply, so the weights of the most "
    "active neurons matter most. In the same way the activations should change in proportion to the weights."
)
SEE = (
    "Left: what each value can do alone, measured by moving it. All points lie on one line: the effect of a weight is "
    "proportional to its activation, the effect of an activation to its weight, and a bias is like a weight whose "
    "activation is 1. Middle: the proportional change (dashed) lowers the cost more than any random change of the same "
    "length. Right: half the change leaves a quarter of the error, so the predicted slope is right."
)
SOURCE = (
    '3Blue1Brown, "What is backpropagation really doing?" (chapter 3 of the videos, '
    "https://www.3blue1brown.com/lessons/backpropagation)"
)
DIGIT = 2  # 3Blue1Brown's example
STEPS = 30  # not well trained yet: the outputs are all near 0.1
WIDTH = 16
NEURON, LOSS = MLP((WIDTH, 1), ("sigmoid",)), SquaredError()
WAYS = {
    "bias": slice(0, 1),
    "16 weights": slice(1, WIDTH + 1),
    "16 activations": slice(WIDTH + 1, 2 * WIDTH + 1),
    "all three": slice(0, 2 * WIDTH + 1),
}
COLORS = dict(zip(WAYS, (VERMILION, BLUE, GREEN, "black"), strict=True))
LENGTHS = [0.1 / 2**k for k in range(11)]  # from what the figure shows to where r² is nothing beside r
DIRECTIONS = 2000
SECOND_ORDER = 1.9  # the error's power of r; 2, or 3 where the cost happens to have no curvature


def output_neuron(data: Dataset, seed: int) -> Tensor:
    """v = (b, w₁ … w₁₆, a₁ … a₁₆) of the output neuron of the 2, in a network of STEPS steps that sees the first 2."""
    network = new_network(data, seed)
    train_to(network, STEPS, seed)
    x, y = batch(data.train, 100)
    a = network.activations(x[y == DIGIT][:1])["layer2"][0]
    return torch.cat([network.params["layer3.bias"][[DIGIT]], network.params["layer3.weight"][DIGIT], a])


def parts(v: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """v as the parameters and the input of the network that this neuron alone is."""
    b, w, a = v.split((1, WIDTH, WIDTH))
    return {"layer1.weight": w.view(1, WIDTH), "layer1.bias": b}, a.view(1, WIDTH)


def cost(v: Tensor) -> Tensor:
    """C = (σ(z) − 1)²: this neuron's part in the cost."""
    output = outputs(NEURON, *parts(v))
    return LOSS.forward(output, torch.ones_like(output))[0]


def gradient(v: Tensor) -> Tensor:
    """∂C/∂v, by backpropagation through the neuron."""
    params, a = parts(v)
    gradients: dict[str, Tensor] = {}
    tape = Tape(need_dx=True)
    output = NEURON.forward(params, a, tape)
    d_output = LOSS.backward(1.0, LOSS.forward(output, torch.ones_like(output))[1])
    da = NEURON.backward(params, d_output, gradients, tape)
    assert da is not None
    return torch.cat([gradients["layer1.bias"], gradients["layer1.weight"][0], da[0]])


def changes(v: Tensor, where: slice, directions: Tensor, length: float) -> Tensor:
    """(N,): C(v + Δv) − C(v) for each of these directions (N, n) of the values `where`, by forward passes."""
    nudges = torch.zeros(len(directions), len(v), dtype=v.dtype)
    nudges[:, where] = length * directions / directions.norm(dim=1, keepdim=True)
    return torch.stack([cost(v + nudge) - cost(v) for nudge in nudges])


def errors(v: Tensor, dv: Tensor, where: slice) -> list[float]:
    """|measured − predicted| for nudges of all LENGTHS along the negative gradient."""
    measured = [changes(v, where, -dv[where].unsqueeze(0), r).item() for r in LENGTHS]
    return [abs(m + r * dv[where].norm().item()) for m, r in zip(measured, LENGTHS, strict=True)]


def run(data: Dataset, seed: int, run_dir: Path) -> Report:
    v = output_neuron(data, seed)
    dv, effect = gradient(v), wiggle(cost, v)
    generator = torch.Generator().manual_seed(seed)
    longest, shortest = LENGTHS[0], LENGTHS[-1]

    table = [["changed by 0.1", "predicted ΔC", "measured ΔC", "error at 0.05", "ΔC of the best random change"]]
    error, order, best, tried = {}, {}, {}, {}
    for way, where in WAYS.items():
        error[way] = errors(v, dv, where)
        order[way] = log2(error[way][-2] / error[way][-1])
        measured = changes(v, where, -dv[where].unsqueeze(0), longest).item()
        random = torch.randn(DIRECTIONS, len(dv[where]), generator=generator, dtype=v.dtype)
        tried[way] = changes(v, where, random, longest)
        best[way] = tried[way].min().item() / measured
        predicted = -longest * dv[where].norm().item()
        halved = f"÷ {error[way][0] / error[way][1]:.2f}"
        table.append([way, f"{predicted:.5f}", f"{measured:.5f}", halved, f"{best[way]:.0%} of this"])

    w, a = v[WAYS["16 weights"]], v[WAYS["16 activations"]]
    of_weights, of_activations = effect[WAYS["16 weights"]], effect[WAYS["16 activations"]]
    ranked = torch.equal(of_weights.abs().argsort(), a.argsort())
    ranked &= torch.equal(of_activations.abs().argsort(), w.abs().argsort())
    off, least_order = distance(dv, effect), min(order.values())
    ratio = max(error[way][-1] / (shortest * dv[where].norm().item()) for way, where in WAYS.items())
    closest = max(best["16 weights"], best["16 activations"])
    verdict = (
        f"for changes of length {shortest:.0e}, the relative error of the predicted ΔC is {ratio:.0e} at most, and the "
        f"error falls as length to the power {least_order:.2f}. The best of {DIRECTIONS:,} random directions lowers "
        f"the cost {closest:.0%} as much as the proportional one. Moved one at a time, weights of more active neurons "
        f"{'always' if ranked else 'do NOT always'} have the larger effect."
    )
    holds = ranked and off < AGREE and least_order > SECOND_ORDER and max(best.values()) <= 1

    figure = new_figure(11, 3.8)
    axes = figure.add_subplot(1, 3, 1)
    ends = torch.stack([torch.cat([w, a]).min(), torch.cat([w, a, torch.ones(1)]).max()])
    axes.plot(ends, -dv[0] * ends, color="black", linewidth=0.8, label="slope −δ")
    axes.plot(a, -of_weights, "o", color=BLUE, label="a weight, by its activation")
    axes.plot(w, -of_activations, "s", color=GREEN, label="an activation, by its weight")
    axes.plot(1, -effect[0], "D", color=VERMILION, label="the bias, by 1")
    axes.set_title("what each value alone can do")
    axes.set_xlabel("what the value is multiplied by in z")
    axes.set_ylabel("decrease of C per unit (central differences)")
    axes.legend(frameon=False, fontsize=8)

    axes = figure.add_subplot(1, 3, 2)
    for way in ("16 weights", "16 activations"):
        where = WAYS[way]
        axes.hist(tried[way].numpy(), bins=40, histtype="step", color=COLORS[way], label=f"{way}, random")
        proportional = changes(v, where, -dv[where].unsqueeze(0), longest).item()
        axes.axvline(proportional, color=COLORS[way], linestyle="--", label="proportional")
    axes.set_ylim(0, 1.5 * axes.get_ylim()[1])  # room for the legend
    axes.set_title(f"{DIRECTIONS:,} directions, each of length {longest:g}")
    axes.set_xlabel("change of C")
    axes.set_ylabel("directions")
    axes.legend(frameon=False, fontsize=8)

    axes = figure.add_subplot(1, 3, 3)
    for (way, color), size in zip(COLORS.items(), (7, 3, 3, 3), strict=True):  # the bias may lie under another
        axes.loglog(LENGTHS, error[way], "o-", color=color, markersize=size, label=way)
    square = error["bias"][0] / 3
    axes.loglog(LENGTHS, [square * (r / longest) ** 2 for r in LENGTHS], color="gray", linewidth=0.8, label="∝ length²")
    axes.set_title("error of the prediction")
    axes.set_xlabel("length of the change")
    axes.set_ylabel("|measured ΔC − predicted ΔC|")
    axes.legend(frameon=False, fontsize=8)
    return Report(table, holds, verdict, figure)
