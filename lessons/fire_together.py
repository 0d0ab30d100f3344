"""Fire together, wire together: the gradient of a weight is δ of the neuron after it times the activation before it.

    ∂C/∂W_jk = δ_j a_k                    BP4 for one example: an outer product, a matrix of rank one
    ∂C/∂W = (1/B) Σ_examples δᵀ a         for a batch: a mean of such matrices, of any rank

A step of gradient descent adds −η δ_j a_k: most where −δ_j is largest, which is the neuron that should become more
active, and a_k is, which is the most active neuron before it. Where a_k ≈ 0 the weight hardly learns.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from lessons.drawing import signed
from lessons.lesson import Report
from lessons.measure import AGREE, costs, distance, gradient, new_network, train_to, wiggle
from lessons.runs import batch
from training.dashboard.figures import BLUE, new_figure
from training.data import Dataset
from training.learners.manual import ManualLearner

TITLE = "Neurons that fire together wire together"
CLAIM = (
    "The weights that grow most connect the most active neurons to the neurons that should become more active: the "
    "gradient of a weight is δ of the neuron after it times the activation of the neuron before it. Weights from "
    "neurons of low activation learn slowly."
)
SEE = (
    "Left: how the weights into the output layer should change for one picture of a 2. Only the row of the 2 should "
    "clearly grow (blue), and it grows most at the most active neurons (left). Middle: for each example, the growth of "
    "a weight is proportional to the activation before it: points on a line through 0, whose slope is −δ. Right: of "
    "the weights into one hidden neuron, only those of pixels with ink change: one sees the 2."
)
SOURCE = (
    '3Blue1Brown, "What is backpropagation really doing?" (chapter 3 of the videos, '
    "https://www.3blue1brown.com/lessons/backpropagation), on Hebbian theory; "
    "Nielsen, chapter 2 (http://neuralnetworksanddeeplearning.com/chap2.html), on what follows from BP4"
)
DIGIT = 2
EXAMPLES = 200
STEPS = 300  # of training before: most digits are known then, and hidden neurons differ from picture to picture
LINES = 12  # examples in the figure
NONZERO = 1e-10  # of the largest singular value: rounding leaves less
LAYERS = ("layer1", "layer2", "layer3")


def outer_products(network: ManualLearner, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """δ_j a_k of every layer for the one example x (1, 784), from the backward and the forward pass."""
    result = network.backpropagate(x, y)
    before = {"layer1": x, "layer2": result.outputs["layer1.a"], "layer3": result.outputs["layer2.a"]}
    return {layer: torch.outer(result.deltas[layer][0], before[layer][0]) for layer in LAYERS}


def wiggled(network: ManualLearner, layer: str, x: Tensor, y: Tensor) -> Tensor:
    """(n, n_before, B): by wiggling every weight of a layer, how the cost of each of these examples depends on it."""
    params = network.params
    at = params.vector(lambda name: float(name == f"{layer}.weight")).nonzero().flatten()
    slopes = wiggle(lambda theta: costs(network, theta, x, y), params.theta, at)
    return slopes.view(*params[f"{layer}.weight"].shape, len(y))


def second(matrix: Tensor) -> float:
    """σ₂/σ₁ of its singular values: 0 for a matrix of rank one."""
    values = torch.linalg.svdvals(matrix)
    return (values[1] / values[0]).item()


def rank(matrix: Tensor) -> int:
    values = torch.linalg.svdvals(matrix)
    return int((values > NONZERO * values[0]).sum())


def strongest(growth: Tensor) -> tuple[Tensor, Tensor]:
    """j (B,) and k (B,) of the weight W_jk that grows most for each example of `growth` (n, n_before, B)."""
    place = growth.flatten(0, 1).argmax(dim=0)
    return place // growth.shape[1], place % growth.shape[1]


def run(data: Dataset, seed: int, run_dir: Path) -> Report:
    network = new_network(data, seed)
    train_to(network, STEPS, seed)
    x, y = batch(data.train, EXAMPLES)
    a_two, two = x[y == DIGIT][:1], y[y == DIGIT][:1]
    one = {layer: wiggled(network, layer, a_two, two)[:, :, 0] for layer in LAYERS}
    products = outer_products(network, a_two, two)
    each = [outer_products(network, x[i : i + 1], y[i : i + 1]) for i in range(EXAMPLES)]
    mean = {layer: torch.stack([of_one[layer] for of_one in each]).mean(dim=0) for layer in LAYERS}
    whole = network.params.split(gradient(network, x, y))
    table = [["layer", "weights", "error of δ_j a_k", "σ₂/σ₁, one example", f"rank, {EXAMPLES} examples"]]
    for layer in LAYERS:
        error, of_batch = distance(products[layer], one[layer]), whole[f"{layer}.weight"]
        shape = f"{len(of_batch)} × {of_batch.shape[1]}"
        table.append([layer, shape, f"{error:.0e}", f"{second(one[layer]):.0e}", f"{rank(of_batch)}"])
    off = max(distance(products[layer], one[layer]) for layer in LAYERS)
    off_batch = max(distance(mean[layer], whole[f"{layer}.weight"]) for layer in LAYERS)
    thin = max(second(one[layer]) for layer in LAYERS)

    result = network.backpropagate(x, y)
    a, every = result.outputs["layer2.a"], torch.arange(EXAMPLES)
    pull = -EXAMPLES * result.deltas["layer3"][every, y]  # −δ_j of the neuron of each example's digit
    growth = -wiggled(network, "layer3", x, y)  # (10, 16, B)
    j, k = strongest(growth)
    together = ((j == y) & (k == a.argmax(dim=1))).double().mean().item()
    own = growth[y, :, every]  # (B, 16): of the weights into that neuron
    off_own = distance(own, pull.unsqueeze(1) * a)
    slower = (own.amax(dim=1) / own.amin(dim=1)).median().item()
    dark = one["layer1"][:, a_two[0] == 0]
    share = dark.numel() / one["layer1"].numel()
    verdict = (
        f"δ_j a_k agrees with central differences, to {max(off, off_own):.0e}. In {together:.0%} of {EXAMPLES} "
        f"examples the weight that grows most connects the most active neuron to the digit's neuron; the weight of "
        f"the least active neuron grows {slower:.0f} times more slowly (median). The weights of black pixels "
        f"({share:.0%} of the first layer) {'DO change' if dark.any() else 'do not change'}."
    )
    holds = max(off, off_own, off_batch, thin) < AGREE and together == 1 and not dark.any()

    figure = new_figure(11, 3.8)
    axes = figure.add_subplot(1, 3, 1)
    brightest_first = a[y == DIGIT][0].argsort(descending=True)
    signed(figure, axes, -one["layer3"][:, brightest_first])
    axes.set_title(f"−∂C/∂W³ for a {data.classes[DIGIT]}")
    axes.set_xlabel("neuron before, most active first")
    axes.set_ylabel("output neuron")
    axes.set_yticks(range(len(data.classes)), data.classes)

    axes = figure.add_subplot(1, 3, 2)
    for i in range(LINES):
        line = axes.axline((0, 0), slope=pull[i].item(), color="black", linewidth=0.5)
        (points,) = axes.plot(a[i], own[i], ".", color=BLUE)
    axes.set_title(f"into the digit's neuron, {LINES} examples")
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("activation of the neuron before")
    axes.set_ylabel("−∂C/∂W³")
    axes.legend([points, line], ["central differences", "slope −δ_j"], frameon=False)

    axes = figure.add_subplot(1, 3, 3)
    neuron = int(one["layer1"].sum(dim=1).argmin())
    signed(figure, axes, -one["layer1"][neuron].view(data.shape))
    axes.set_box_aspect(1)
    axes.set_title(f"−∂C/∂W¹ into hidden neuron {neuron}")
    axes.axis("off")
    return Report(table, holds, verdict, figure)
