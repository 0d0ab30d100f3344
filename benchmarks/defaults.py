"""How well each combination learns with what training/families/defaults.py chooses: docs/defaults.md, defaults.json.

    python -m benchmarks.defaults

A quarter of an hour on two cores. Needs no network: the data are the bundled sample of MNIST.
"""

import json
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

import torch
import tyro
from rich.progress import track

from benchmarks.readme import machine
from lessons.runs import train
from manual_backprop.layers.activations import ACTIVATIONS
from manual_backprop.optimizers import OPTIMIZERS
from training.config import Config
from training.data import load
from training.families import defaults
from training.families.configure import configure, default_preset, load_preset
from training.loop import NotFiniteError
from training.prepare import FOUND_THREADS
from training.terminal.output import command

EPOCHS = 8
SEEDS = 3
PAGE = Path(__file__).parent.parent / "docs" / "defaults.md"
HAND_MADE = "<!-- measured -->\n"  # what stands above it is written by hand


@dataclass(frozen=True)
class Job:
    model: str
    optimizer: str
    cost: str
    activation: str
    seed: int

    @property
    def config(self) -> Config:
        """What train.py makes of these options, for so many epochs of the sample."""
        usual = load_preset(default_preset(self.model))
        asked = {"optimizer": self.optimizer, "loss": self.cost, "activation": (self.activation,)}
        values = defaults.fill({**vars(usual), **asked}, ["loss"])
        return replace(
            configure(**values),
            dataset="sample",
            device="cpu",
            threads=1,
            epochs=EPOCHS,
            seed=self.seed,
            histogram_every=0,
        )


def jobs() -> list[Job]:
    """Every optimizer, cost and activation of the perceptron; the optimizers of the convolutional networks."""
    mlp = [
        Job("mlp", optimizer, cost, activation, seed)
        for optimizer in OPTIMIZERS
        for cost in defaults.COSTS
        for activation in ACTIVATIONS
        for seed in range(SEEDS)
    ]
    usual = {model: load_preset(default_preset(model)) for model in ("cnn", "lenet5")}
    return [
        Job(model, optimizer, config.loss, vars(config)["activation"][0], seed)
        for model, config in usual.items()  # what takes longest comes first
        for optimizer in OPTIMIZERS
        for seed in range(SEEDS)
    ] + mlp


def measure(job: Job) -> float:
    """The test accuracy at the end; 0 where the numbers left the finite."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        try:
            lines = train(job.config, load("sample"), Path(folder))
        except NotFiniteError:
            return 0.0
    return [line["accuracy/test"] for line in lines if "accuracy/test" in line][-1]


def collected(results: Iterable[tuple[Job, float]]) -> dict[str, Any]:
    """By model, optimizer, cost and activation the accuracies of the seeds, as families/defaults.py reads them."""
    nested: dict[str, Any] = {"epochs": EPOCHS, "machine": machine()}
    for job, accuracy in results:
        by_cost = nested.setdefault(job.model, {}).setdefault(job.optimizer, {})
        by_cost.setdefault(job.cost, {}).setdefault(job.activation, []).append(accuracy)
    return nested


def page(figures: dict[str, Any]) -> str:
    """The tables."""
    lines: list[str] = []
    activations = list(ACTIVATIONS)
    for cost in defaults.COSTS:
        cells = {o: by_cost[cost] for o, by_cost in figures["mlp"].items()}
        lines += ["", f"### 784-16-16-10, {defaults.spelled(cost)}", ""]
        lines += [f"| optimizer | rate | {' | '.join(activations)} |", f"|---|---|{'---|' * len(activations)}"]
        for optimizer, own in cells.items():
            rate = Job("mlp", optimizer, cost, "relu", 0).config.lr
            lines.append(f"| {optimizer} | {rate:g} | {' | '.join(percent(own[name]) for name in activations)} |")
    lines += ["", "### The convolutional networks, softmax cross-entropy", ""]
    lines += ["| optimizer | lenet5, rate | lenet5 | cnn, rate | cnn |", "|---|---|---|---|---|"]
    for optimizer in OPTIMIZERS:
        row = [optimizer]
        for model in ("lenet5", "cnn"):
            ((cost, by_activation),) = figures[model][optimizer].items()
            ((activation, accuracies),) = by_activation.items()
            row += [f"{Job(model, optimizer, cost, activation, 0).config.lr:g}", percent(accuracies)]
        lines.append(f"| {' | '.join(row)} |")
    low = [
        accuracies
        for by_cost in figures["mlp"].values()
        for by_activation in by_cost.values()
        for accuracies in by_activation.values()
        if mean(accuracies) < defaults.GOOD
    ]
    total = len(figures["mlp"]) * len(defaults.COSTS) * len(activations)
    lines += [
        "",
        f"Test accuracy in percent after {figures['epochs']} epochs of the bundled sample, mean ± standard deviation "
        f"of the seeds 0 to {SEEDS - 1}. {total - len(low)} of {total} combinations of the perceptron reach "
        f"{defaults.GOOD:.0%}; the others are set in italics. {figures['machine']}. Measured by "
        "`python -m benchmarks.defaults`.",
    ]
    return "\n".join(lines) + "\n"


def percent(accuracies: list[float]) -> str:
    text = f"{100 * mean(accuracies):.1f} ± {100 * stdev(accuracies):.1f}"
    return text if mean(accuracies) >= defaults.GOOD else f"*{text}*"


def main(jobs_at_once: Annotated[int, tyro.conf.arg(name="jobs")] = FOUND_THREADS) -> None:
    """Measure everything again, and write docs/defaults.md and training/families/defaults.json.

    Args:
        jobs_at_once: How many runs at a time, each on one thread.
    """
    torch.set_num_threads(1)  # before processes are forked
    todo = jobs()
    with ProcessPoolExecutor(jobs_at_once) as pool:
        accuracies = list(track(pool.map(measure, todo), total=len(todo), description="runs"))
    figures = collected(zip(todo, accuracies, strict=True))
    defaults.MEASURED.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    above, mark, _ = PAGE.read_text(encoding="utf-8").partition(HAND_MADE)
    PAGE.write_text(above + mark + page(figures), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(command("benchmarks.defaults")(tyro.cli)(main))
