"""What a network makes of 1,000 pictures: it memorizes them. And what helps.

L2               C + ½ λ Σ w²                                    large weights cost something
L1               C + λ Σ |w|                                     so does every weight that is not 0
dropout          aˡ ⊙ mˡ/keep, mˡ random zeros and ones          no neuron can count on another one
early stopping   the θ that was best on pictures held out        from before it memorizes
more data        more pictures, or the same ones moved           there is more to memorize

Every network starts at the same weights and takes 1,250 steps of the same rate. It does not settle down at a constant
rate, so "at the end" is the mean of its evaluations in the last quarter; stopping early keeps a single one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lessons.lesson import Curve, Report
from lessons.runs import curve, first, train
from training.dashboard.figures import BLUE, COLORS, VERMILION, new_figure
from training.data import Dataset, expand
from training.evaluation import evaluate
from training.families.configure import configure
from training.prediction import load_trained

TITLE = "Overfitting: 1,000 pictures memorized, and what helps"
CLAIM = (
    "Trained on only 1,000 pictures, a network classifies all of them correctly, but its cost on test pictures turns "
    "and rises while the training cost goes to zero. L2, L1, dropout, early stopping and more data all reduce that."
)
SEE = (
    "Left: the training cost (blue) goes to zero; the test cost (orange) falls, turns at the dot and rises. From the "
    "dot on, the network memorizes its pictures. Right: with every remedy the test cost ends lower than with nothing; "
    "it ends lowest with ten times as many pictures."
)
SOURCE = "Nielsen, chapter 3 (http://neuralnetworksanddeeplearning.com/chap3.html)"
PICTURES, TEST = 1_000, 2_000
STEPS = 1_250
NETWORK = configure(
    hidden=(100,),
    activation=("relu",),
    loss="softmax-cross-entropy",
    init="he",
    lr=0.02,
    momentum=0.9,
    schedule="constant",
    batch_size=20,
    epochs=25,
    max_steps=STEPS,
    log_every=50,
    histogram_every=0,
)
NOTHING, EARLY, SHIFTED, MORE = "nothing", "early-stopping", "shifted-copies", "10,000-pictures"
REMEDIES: dict[str, dict[str, Any]] = {
    NOTHING: {},
    "l2": {"l2": 0.005},
    "l1": {"l1": 0.0003},
    "dropout": {"dropout": 0.5},
    EARLY: {"validation": PICTURES, "patience": 3},
    SHIFTED: {"expand": ("shifts",)},
    MORE: {},
}
BY_HEART = 0.99  # of the training pictures right
TURNED = 1.05  # test cost at the end over its lowest
HELPED = 0.02  # of the test cost, which without a remedy differs by 0.016 (standard deviation) from seed to seed


@dataclass(frozen=True)
class Outcome:
    """One training: its costs by step, and the test set's cost and accuracy at the end."""

    train: Curve
    test: Curve  # of the pictures held out where it stopped early
    cost: float
    accuracy: float
    train_accuracy: float

    @property
    def lowest(self) -> tuple[int, float]:
        return min(self.test, key=lambda point: point[1])


def examples(data: Dataset, remedy: str) -> Dataset:
    """What a remedy trains on; and, as the test set, what it is judged by in the course of that."""
    few = first(data, PICTURES, TEST)
    if remedy == EARLY:
        return replace(few, test=data.train.part(PICTURES, 2 * PICTURES))
    if remedy == SHIFTED:
        return expand(few, ["shifts"])
    return first(data, 10_000, TEST) if remedy == MORE else few


def at_the_end(points: Sequence[tuple[int, float]]) -> float:
    """The mean of a curve's values in the last quarter of the steps."""
    values = [value for step, value in points if step > 0.75 * STEPS]
    return sum(values) / len(values)


def study(data: Dataset, remedy: str, seed: int, run_dir: Path) -> Outcome:
    metrics = train(replace(NETWORK, seed=seed, **REMEDIES[remedy]), examples(data, remedy), run_dir)
    train_cost, cost, accuracy = (curve(metrics, tag) for tag in ("loss/train", "loss/test", "accuracy/test"))
    train_accuracy = curve(metrics, "accuracy/train")[-1][1]
    if remedy != EARLY:
        return Outcome(train_cost, cost, at_the_end(cost), at_the_end(accuracy), train_accuracy)
    test = evaluate(load_trained(run_dir / "best.pt").learner, first(data, PICTURES, TEST).test, torch.float32)
    assert test is not None
    return Outcome(train_cost, cost, test.loss, test.values["accuracy"], train_accuracy)


def run(data: Dataset, seed: int, run_dir: Path) -> Report:
    outcomes = {remedy: study(data, remedy, seed, run_dir / remedy) for remedy in REMEDIES}
    table = [["remedy", "training accuracy", "test accuracy", "lowest test cost, at step", "test cost at the end"]]
    for remedy, o in outcomes.items():
        lowest = "" if remedy == EARLY else f"{o.lowest[1]:.3f} at {o.lowest[0]:,}"
        table.append([remedy, f"{o.train_accuracy:.1%}", f"{o.accuracy:.1%}", lowest, f"{o.cost:.3f}"])
    bare = outcomes[NOTHING]
    helped = {remedy: bare.cost - o.cost for remedy, o in outcomes.items() if remedy != NOTHING}
    least, most = min(helped, key=lambda r: helped[r]), max(helped, key=lambda r: helped[r])
    righter = [remedy for remedy, o in outcomes.items() if o.accuracy > bare.accuracy + 0.01]
    overfits = bare.train_accuracy > BY_HEART and bare.cost > TURNED * bare.lowest[1]
    verdict = (
        f"without a remedy the training accuracy is {bare.train_accuracy:.1%}, the test accuracy {bare.accuracy:.1%}. "
        f"The test cost fell to {bare.lowest[1]:.2f} by step {bare.lowest[0]} and rose to {bare.cost:.2f}, while the "
        f"training cost fell to {bare.train[-1][1]:.3f}. Remedies lower the test cost at the end by "
        f"{helped[least]:.2f} ({least}) to {helped[most]:.2f} ({most}). The test accuracy is more than one percentage "
        f"point higher with: {', '.join(righter) or 'none'}."
    )

    figure = new_figure(11, 3.8)
    left, right = figure.subplots(1, 2)
    left.plot(*zip(*bare.train, strict=True), color=BLUE, label="training pictures")
    left.plot(*zip(*bare.test, strict=True), color=VERMILION, label="test pictures")
    left.plot(*bare.lowest, "o", color=VERMILION, label="lowest test cost")
    left.set_ylim(0, 1)
    left.set_title("no remedy: the test cost turns and rises")
    for remedy, color in zip([remedy for remedy in outcomes if remedy != EARLY], COLORS, strict=False):
        right.plot(*zip(*outcomes[remedy].test[1:], strict=True), ".-", color=color, label=remedy)
    right.axhline(outcomes[EARLY].cost, color="black", linestyle="--", linewidth=1, label=f"{EARLY}, at its best step")
    right.set_ylim(0.1, 0.8)
    right.set_title("with each remedy the test cost ends lower")
    for axes in (left, right):
        axes.set_xlabel("step")
        axes.set_ylabel("mean cost per picture")
        axes.legend(frameon=False, fontsize=8)
    charts = {
        "training cost": {remedy: o.train for remedy, o in outcomes.items()},
        "test cost": {remedy: o.test for remedy, o in outcomes.items() if remedy != EARLY},
    }
    return Report(table, overfits and min(helped.values()) > HELPED, verdict, figure, charts)
