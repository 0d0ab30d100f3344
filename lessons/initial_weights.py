"""Where the descent starts: equal weights, weights that are too large, weights that fit.

    z_j = Σ_k W_jk a_k + b_j                         equal rows of W and b: equal z, equal a
    δˡ_j = Σ_i δˡ⁺¹_i Wˡ⁺¹_ij σ′(zˡ_j)               and with equal columns of the next W equal δ (BP2)
    ∂C/∂W_jk = δ_j a_k                               so they get equal gradients, and stay equal (BP4)

    w ~ N(0, s²), b ~ N(0, 1)                        E z² = s² ‖x‖² + 1: for s = 1 z is about 9 for a digit,
                                                     and σ′(z) about 0; for s² = 1/fan_in z is about 1

With all weights zero, W² = 0 lets no δ through to the hidden layer, and all that W² learns from is a¹ = σ(0): for tanh
and relu nothing, so that only b² ever moves. For a sigmoid it is ½: W² and b² move in the first step, the rest follows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lessons.descent import descend
from lessons.lesson import Curve, Report, mean_curve
from lessons.measure import distance, outputs
from lessons.runs import batch, first, learner
from manual_backprop.models.mlp import MLP
from training.config import Config
from training.dashboard.figures import BLUE, COLORS, VERMILION, new_figure
from training.data import Dataset
from training.families.mlp import MLPConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Initial weights: equal, too large, of the right size"
CLAIM = (
    "Hidden neurons that start equal stay equal, so that a whole layer does the work of one neuron; with all weights "
    "zero, a network may learn nothing but its output biases. N(0, 1) weights saturate neurons, which slows learning "
    "and can lose whole digits; N(0, 1/fan_in) weights do not."
)
SEE = (
    "Left: before training, most z of N(0, 1) weights (orange) lie where σ′ (black) is about 0; those of N(0, "
    "1/fan_in) weights (blue) lie where σ′ is large. Middle: after training, some digits of the orange networks are "
    "lost: few or none of their pictures are found, and σ′ of their output is tiny. Right: hidden neurons that start "
    "equal stay equal up to rounding, which training can amplify later."
)
SOURCE = (
    "CS231n, Neural Networks Part 2, Weight Initialization (https://cs231n.github.io/neural-networks-2/); "
    "Nielsen, chapter 3 (http://neuralnetworksanddeeplearning.com/chap3.html) and, on runs that end much worse, 1"
)
NETWORK = MLPConfig(hidden=(30,), loss="quadratic", init="zeros", lr=3.0, batch_size=10, epochs=2)
EQUAL = {
    "zeros, sigmoid": replace(NETWORK, dtype="float64"),
    "zeros, tanh": replace(NETWORK, dtype="float64", activation=("tanh", "sigmoid")),
    "zeros, relu": replace(NETWORK, dtype="float64", activation=("relu", "sigmoid")),
    "½, sigmoid": replace(NETWORK, dtype="float64", init="constant"),
}
STUCK = ("zeros, tanh", "zeros, relu")  # only the output biases can move
LARGE, FITTING = replace(NETWORK, init="standard-normal"), replace(NETWORK, init="scaled-normal")
STARTS = 6  # of either: losing a digit is a matter of luck
EARLY = 200  # steps: neurons differ by rounding at once, and by more later, for descent can make differences grow
ROUNDING = 1e-10
SATURATED = 0.01  # a neuron with a smaller σ′, so with |z| above 4.6
MANY, FEW = 0.3, 0.03  # of the hidden neurons
LOST = 0.5  # a digit of which less than this part is found


@dataclass(frozen=True)
class Course:
    """How a network learned."""

    z: Tensor  # of the hidden neurons before the first step (pictures, neurons)
    differences: list[tuple[int, float]]  # (step, how far its hidden neurons are from equal)
    accuracies: list[tuple[int, float]]
    replaced: float  # what replacing them all by one changes after EARLY steps
    moved: list[str]  # names of the parameters that are no longer what they were
    slope: Tensor  # mean σ′ of each digit's output on that digit's pictures, at the end (10,)
    recall: Tensor  # the part of them that is found (10,)

    @property
    def early(self) -> float:
        """The largest difference up to EARLY."""
        return max(value for step, value in self.differences if step <= EARLY)

    @property
    def lost(self) -> int:
        """Digits."""
        return int((self.recall < LOST).sum())


def neurons(params: Mapping[str, Tensor]) -> Tensor:
    """All about each hidden neuron: its weights in, its bias, its weights out. (neurons, in + 1 + out)"""
    W, b, W_next = params["layer1.weight"], params["layer1.bias"], params["layer2.weight"]
    return torch.cat([W, b.unsqueeze(1), W_next.T], dim=1)


def difference(rows: Tensor) -> float:
    """√(Σ‖rⱼ − r̄‖² / Σ‖rⱼ‖²): 0 for equal rows, about 1 for rows that have nothing in common."""
    size = rows.norm().item()
    return (rows - rows.mean(dim=0)).norm().item() / size if size else 0.0


def one_instead_of_all(model: MLP, params: Mapping[str, Tensor], x: Tensor) -> float:
    """‖Δa‖ / ‖a‖ of the outputs when one hidden neuron replaces all: their mean, with the sum of their weights out."""
    one = {name: p.mean(dim=0, keepdim=True) if name.startswith("layer1") else p for name, p in params.items()}
    one["layer2.weight"] = params["layer2.weight"].sum(dim=1, keepdim=True)
    small = MLP((model.sizes[0], 1, model.sizes[-1]), model.activations)
    return distance(outputs(small, one, x), outputs(model, params, x))


def saturated(z: Tensor) -> float:
    """The part with σ′(z) = σ(z) (1 − σ(z)) below SATURATED."""
    a = torch.sigmoid(z)
    return (a * (1 - a) < SATURATED).double().mean().item()


def course(config: Config, data: Dataset) -> Course:
    start, network = learner(config, data), learner(config, data)
    model = network.model
    assert isinstance(model, MLP)
    x, y = batch(data.test, len(data.test), network.dtype)
    differences, accuracies, replaced = [], [], 0.0
    for step in descend(network, config.batch_size, config.lr, config.epochs, config.seed):
        if step == EARLY:
            replaced = one_instead_of_all(model, network.params, x)
        if step % 50 == 0 or step == config.total_steps(data.train.steps(config.batch_size)):
            a = network.outputs(x)
            right = (a.argmax(dim=1) == y).double()
            differences.append((step, difference(neurons(network.params))))
            accuracies.append((step, right.mean().item()))
    moved = [name for name, p in network.params.items() if not torch.equal(p, start.params[name])]
    own = a.gather(1, y.unsqueeze(1)).squeeze(1)  # the output that should be 1
    digits = [y == digit for digit in range(len(data.classes))]
    slope = torch.stack([(own * (1 - own))[digit].mean() for digit in digits])
    recall = torch.stack([right[digit].mean() for digit in digits])
    return Course(start.backpropagate(x, y).outputs["layer1"], differences, accuracies, replaced, moved, slope, recall)


def confirmed(equal: Mapping[str, Course], large: Sequence[Course], fitting: Sequence[Course]) -> bool:
    """Whether equal neurons stayed equal, zeros were stuck as predicted, and large weights did harm."""
    symmetric = all(c.early < ROUNDING and c.replaced < ROUNDING for c in equal.values())
    stuck = all(equal[name].moved == ["layer2.bias"] for name in STUCK)
    saturation = min(saturated(c.z) for c in large) > MANY and max(saturated(c.z) for c in fitting) < FEW
    slower = mean_accuracy(large) < mean_accuracy(fitting)
    return symmetric and stuck and saturation and slower and lost(large) > 1 + 3 * lost(fitting)


def mean_accuracy(courses: Sequence[Course]) -> float:
    return sum(c.accuracies[-1][1] for c in courses) / len(courses)


def lost(courses: Sequence[Course]) -> int:
    return sum(c.lost for c in courses)


def run(data: Dataset, seed: int, run_dir: Path) -> Report:
    data = first(data, 5_000, 2_000)
    equal = {name: course(replace(config, seed=seed), data) for name, config in EQUAL.items()}
    seeds = torch.randint(2**31, (STARTS,), generator=torch.Generator().manual_seed(seed)).tolist()
    large, fitting = ([course(replace(config, seed=s), data) for s in seeds] for config in (LARGE, FITTING))

    rows = {name: [c] for name, c in equal.items()} | {"N(0, 1)": large, "N(0, 1/fan_in)": fitting}
    table = [["initial weights", "what changed", "neurons differ by", "RMS z¹", "accuracy", "digits lost, by run"]]
    table += [row(name, courses) for name, courses in rows.items()]
    early, replaced = (max(getattr(c, what) for c in equal.values()) for what in ("early", "replaced"))
    step, late = max((c.differences[-1] for c in equal.values()), key=lambda point: point[1])
    verdict = (
        f"after {EARLY} steps hidden neurons that started equal differ by {early:.0e}, and one neuron in their place "
        f"gives the same outputs to {replaced:.0e}; by step {step:,} training has amplified rounding to {late:.0e}. "
        f"N(0, 1) weights saturate {saturated(large[0].z):.0%} of the hidden neurons and lose {lost(large)} digits in "
        f"{STARTS} runs; N(0, 1/fan_in) weights saturate {saturated(fitting[0].z):.0%} and lose {lost(fitting)}."
    )
    charts: dict[str, dict[str, Curve]] = {
        "accuracy": {name: mean_curve([c.accuracies for c in courses]) for name, courses in rows.items()},
        "difference of neurons that start equal": {name: c.differences for name, c in equal.items()},
    }
    return Report(table, confirmed(equal, large, fitting), verdict, draw(equal, large, fitting), charts)


def row(name: str, courses: Sequence[Course]) -> list[str]:
    """Of several starts the means, and each one's lost digits."""
    short = {"layer1.weight": "W¹", "layer1.bias": "b¹", "layer2.weight": "W²", "layer2.bias": "b²"}
    differ = f"{sum(c.differences[-1][1] for c in courses) / len(courses):.0e}"
    size = f"{torch.stack([c.z.square().mean() for c in courses]).mean().sqrt():.1f}"
    digits = " ".join(f"{c.lost}" for c in courses)
    return [name, " ".join(short[p] for p in courses[0].moved), differ, size, f"{mean_accuracy(courses):.0%}", digits]


def draw(equal: Mapping[str, Course], large: Sequence[Course], fitting: Sequence[Course]) -> Figure:
    figure = new_figure(11, 3.8)
    axes = [figure.add_subplot(1, 3, column) for column in (1, 2, 3)]
    for (name, c), color in zip(equal.items(), COLORS, strict=False):
        steps, values = zip(*c.differences, strict=True)
        axes[2].plot(steps, [max(value, 1e-18) for value in values], color=color, label=name)
    for name, courses, color in (("N(0, 1)", large, VERMILION), ("N(0, 1/fan_in)", fitting, BLUE)):
        z, slope, recall = (torch.cat([getattr(c, what) for c in courses]) for what in ("z", "slope", "recall"))
        axes[0].hist(z.flatten(), bins=100, range=(-30, 30), density=True, color=color, alpha=0.6, label=name)
        axes[1].semilogx(slope, recall, "o", color=color, alpha=0.6, label=name)
    z = torch.linspace(-30, 30, 601)
    axes[0].plot(z, torch.sigmoid(z) * torch.sigmoid(-z), color="black", linewidth=1, label="σ′(z)")
    axes[0].set(title="z of the hidden neurons before training", xlabel="z¹", ylabel="density")
    axes[1].set(title=f"ten digits, {STARTS} runs: some are lost", ylabel="recall: share of its pictures found")
    axes[1].set(xlabel="mean σ′ of the digit's output on its pictures")
    axes[2].set(title="hidden neurons that start equal", xlabel="step", ylabel="difference between them (10⁻¹⁸: none)")
    axes[2].set(yscale="log", ylim=(1e-18, 1))
    for each in axes:
        each.legend(frameon=False, fontsize=8)
    return figure
