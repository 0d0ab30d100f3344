"""What is filled in learns: the measured figures of docs/defaults.md, what is told of the bad ones, and first runs."""

import re
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch

import train
from benchmarks.defaults import EPOCHS, SEEDS, Job, jobs
from lessons.runs import learner
from tests.support import running
from tests.support.filling import CHOSEN, filled, parsed
from tests.support.running import ROOT, call, resolved
from training.data import Dataset
from training.data.order import epoch_order
from training.evaluation import evaluate
from training.families import FAMILIES, defaults
from training.schedules import make_schedule

Capsys = pytest.CaptureFixture[str]
RELU = ("relu",)


def measured_jobs() -> list[Job]:
    """One of each combination that has figures; an optimizer or activation that somebody added need not have any."""
    mlp = defaults.measured()["mlp"]
    known = [job for job in jobs() if job.seed == 0 and job.optimizer in mlp]
    return [job for job in known if job.activation in mlp["sgd"]["quadratic"]]


def test_what_is_measured_is_measured_with_everything_else_and_on_the_page() -> None:
    figures = defaults.measured()
    for job in measured_jobs():
        accuracies = figures[job.model][job.optimizer][job.cost][job.activation]
        assert len(accuracies) == SEEDS
        assert all(0 <= accuracy <= 1 for accuracy in accuracies), job
    page = (ROOT / "docs" / "defaults.md").read_text(encoding="utf-8")
    for cost in defaults.COSTS:
        table = page.partition(f"### 784-16-16-10, {defaults.spelled(cost)}\n")[2].partition("###")[0]
        (activations,) = re.findall(r"^\| optimizer \| rate \| (.*) \|$", table, re.M)
        for optimizer, by_cost in figures["mlp"].items():
            (row,) = re.findall(rf"^\| {optimizer} \| (.*) \|$", table, re.M)
            rate, *cells = row.split(" | ")
            shown = dict(zip(activations.split(" | "), cells, strict=True))
            assert float(rate) == Job("mlp", optimizer, cost, "relu", 0).config.lr
            assert shown.keys() == by_cost[cost].keys()
            for activation, accuracies in by_cost[cost].items():
                assert shown[activation].strip("*").split(" ± ")[0] == f"{100 * mean(accuracies):.1f}"
                assert shown[activation].startswith("*") == (mean(accuracies) < defaults.GOOD)
    assert figures["epochs"] == EPOCHS == 8
    assert "torch" in figures["machine"]


def test_with_the_cost_that_is_filled_in_every_network_learns_but_for_few() -> None:
    """For each optimizer all activations but one at most; the cost is quadratic for sigmoid with sgd, else softmax
    cross-entropy."""
    for optimizer, by_cost in defaults.measured()["mlp"].items():
        bad = []
        for activation in by_cost["quadratic"]:
            cost = filled(optimizer=optimizer, activation=(activation,))[0].loss
            assert cost == ("quadratic" if (optimizer, activation) == ("sgd", "sigmoid") else "softmax-cross-entropy")
            bad += [activation] if mean(by_cost[cost][activation]) < defaults.GOOD else []
        assert len(bad) <= 1, (optimizer, bad)
    for model in ("lenet5", "cnn"):
        for by_cost in defaults.measured()[model].values():
            ((accuracies,),) = ([*by_activation.values()] for by_activation in by_cost.values())
            assert mean(accuracies) >= defaults.GOOD


@pytest.mark.long
@pytest.mark.parametrize(
    "every", [pytest.param(11, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.long)], ids=["few", "all"]
)
def test_what_is_measured_is_what_train_makes_of_such_a_command_line(every: int) -> None:
    for job in measured_jobs()[::every]:
        line = f"--model {job.model} --optimizer {job.optimizer} --loss {job.cost} --activation {job.activation}"
        asked, measured = (vars(FAMILIES[job.model].settled(config)) for config in (parsed(line), job.config))
        for name in (*CHOSEN, "activation", "hidden", "momentum", "schedule", "batch_size", "shift", "rotate"):
            assert asked.get(name) == measured.get(name), (line, name)


@pytest.mark.slow
def test_a_combination_that_learns_badly_is_named_with_its_figure() -> None:
    found = 0
    for job in measured_jobs():
        accuracy = mean(defaults.measured()[job.model][job.optimizer][job.cost][job.activation])
        _, said = filled(job.model, optimizer=job.optimizer, loss=job.cost, activation=(job.activation,))
        bad = [note for note in said if note.startswith(f"note: {job.optimizer} with {job.activation} and ")]
        assert len(bad) == (accuracy < defaults.GOOD), job
        assert not bad or f"reached only {accuracy:.0%} in 8 epochs of the sample" in bad[0]
        found += len(bad)
    assert found, "else the sentence is for nobody"


def test_the_cost_that_serves_better_is_named_with_its_figure() -> None:
    _, (_, said) = filled(optimizer="lion", activation=RELU, loss="quadratic")
    better = mean(defaults.measured()["mlp"]["lion"]["softmax-cross-entropy"]["relu"])
    assert f"; with --loss softmax-cross-entropy it reached {better:.0%} (docs/defaults.md)" in said


@pytest.mark.parametrize("other", [dict(lr=0.5), dict(init="he"), dict(activation=("sigmoid", "tanh", "sigmoid"))])
def test_nothing_is_said_of_settings_that_were_not_measured(other: dict[str, Any]) -> None:
    bad = dict(optimizer="lion", activation=("sigmoid",), loss="quadratic")
    assert any("reached only" in note for note in filled(**bad)[1])
    assert not any("reached only" in note for note in filled(**bad | other)[1])


# What really learns


EXPERIMENTS = [
    "--activation relu",
    "--activation tanh",
    "--optimizer adam",
    "--optimizer lion --activation gelu",
    "--momentum 0.9",
    "--hidden 100",
    "--hidden 60 40 --activation leaky_relu --optimizer rmsprop",
    "--activation relu --loss squared-error",
    "--dtype bfloat16 --activation silu --optimizer muon",
]


@pytest.mark.long
@pytest.mark.parametrize("line", EXPERIMENTS)
def test_a_first_experiment_learns(line: str, sample: Dataset) -> None:
    config = resolved(replace(parsed(line), dataset="sample", epochs=8), sample)
    network, total = learner(config, sample), config.total_steps(sample.train.steps(config.batch_size))
    schedule = make_schedule(config, 100)
    for epoch in range(8):
        batches = epoch_order(0, epoch, 10_000).view(100, 100)
        rates = [config.lr * schedule(100 * epoch + i, total) for i in range(100)]
        network.advance(batches, torch.tensor(rates, dtype=torch.float64))
    result = evaluate(network, sample.test, network.dtype)
    assert result is not None
    assert result.values["accuracy"] > 0.75


@pytest.mark.long
def test_the_first_command_does_what_it_did(tmp_path: Path, capsys: Capsys) -> None:
    """On the bundled sample with seed 0: 90.4% after 50 epochs, no line about settings or a run that does not learn."""
    options = ("--impl", "manual", "--dataset", "sample", "--threads", 1, "--run-dir", tmp_path / "run")
    done = call(capsys, train.main, *options)
    assert done.status == 0
    assert done.out.startswith("the bundled sample of MNIST")
    assert "does not learn" not in done.out
    assert running.values(tmp_path / "run", "accuracy/test")[5000] == pytest.approx(0.904, abs=0.01)
