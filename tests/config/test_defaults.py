"""What is left out follows from what is set: the first experiment learns, and one line says what was chosen."""

import json
import re
import tomllib
from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest
import torch

import train
from benchmarks.defaults import Job, jobs
from lessons.runs import learner
from manual_backprop.layers.activations import ACTIVATIONS
from manual_backprop.losses import LOSSES
from manual_backprop.optimizers import OPTIMIZERS
from tests.support import running
from tests.support.running import ROOT, call, resolved
from training.config import Config
from training.data import Dataset
from training.data.order import epoch_order
from training.errors import UserError
from training.evaluation import evaluate
from training.families import FAMILIES, defaults
from training.families.configure import default_preset, load_preset, preset_names, preset_values
from training.schedules import make_schedule

Capsys = pytest.CaptureFixture[str]
CHOSEN = ("loss", "init", "lr", "l2")


def parsed(line: str) -> Config:
    return train.parse(line.split()).config


def notes(line: str) -> list[str]:
    return train.parse(line.split()).notes


@pytest.mark.parametrize("model", FAMILIES)
def test_without_a_choice_what_is_filled_in_is_the_models_own_preset(model: str) -> None:
    usual = vars(load_preset(default_preset(model)))
    assert defaults.fill({**usual, **dict.fromkeys(CHOSEN)}, usual.keys() - set(CHOSEN)) == usual
    assert notes(f"--model {model}") == []


@pytest.mark.parametrize(
    ("line", "loss", "init", "lr"),
    [
        ("", "quadratic", "scaled-normal", 10),
        ("--hidden 30", "quadratic", "scaled-normal", 10),
        ("--hidden 100", "softmax-cross-entropy", "xavier", 1),
        ("--hidden 16 16 16", "softmax-cross-entropy", "xavier", 1),
        ("--activation relu", "softmax-cross-entropy", "he", 0.1),
        ("--activation tanh", "softmax-cross-entropy", "xavier", 0.1),
        ("--activation tanh gelu identity", "softmax-cross-entropy", "he", 0.1),
        ("--activation sigmoid sigmoid identity", "softmax-cross-entropy", "scaled-normal", 1),
        ("--activation sigmoid sigmoid identity --loss quadratic", "quadratic", "scaled-normal", 0.1),
        ("--activation sigmoid relu --hidden 16", "quadratic", "xavier", 0.1),
        ("--activation tanh tanh sigmoid", "quadratic", "xavier", 0.3),
        ("--optimizer adam", "softmax-cross-entropy", "xavier", 0.005),
        ("--optimizer muon --activation silu", "softmax-cross-entropy", "he", 0.02),
        ("--momentum 0.9", "softmax-cross-entropy", "xavier", 0.1),
        ("--momentum 0.9 --activation relu", "softmax-cross-entropy", "he", 0.01),
        ("--optimizer nesterov --momentum 0.95 --activation relu", "softmax-cross-entropy", "he", 0.05),
        ("--optimizer nesterov --momentum 0.5 --activation relu", "softmax-cross-entropy", "he", 0.1),
        ("--label-smoothing 0.1", "softmax-cross-entropy", "scaled-normal", 1),
        ("--loss squared-error", "squared-error", "scaled-normal", 5),
        ("--loss squared-error --activation relu", "squared-error", "he", 0.15),
        ("--loss sigmoid-cross-entropy", "sigmoid-cross-entropy", "scaled-normal", 1),
        ("--loss quadratic --activation relu relu identity", "quadratic", "he", 0.1),
        ("--model lenet5 --optimizer sgd", "softmax-cross-entropy", "xavier", 0.1),
        ("--model cnn --optimizer adam", "softmax-cross-entropy", "he", 0.005),
        ("--model cnn --loss quadratic --optimizer sgd", "quadratic", "he", 0.1),
    ],
)
def test_cost_start_and_rate_follow(line: str, loss: str, init: str, lr: float) -> None:
    config = parsed(line)
    assert (config.loss, config.init, config.lr) == (loss, init, lr)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_cost_of_activations_has_outputs_between_its_targets(activation: str) -> None:
    config = parsed(f"--activation {activation} --loss quadratic")
    bounded = activation in ("sigmoid", "tanh", "scaled_tanh")
    assert config.activations[-1] == (activation if bounded else "sigmoid")
    assert config.activations[:-1] == (activation, activation)
    assert parsed(f"--activation {activation} --loss sigmoid-cross-entropy").activations[-1] == "identity"
    named = parsed(f"--activation {activation} {activation} identity --loss quadratic")
    assert named.activations[-1] == "identity", "what is named stays"


def test_the_optimizer_decides_about_l2_of_the_convolutional_networks() -> None:
    for model in ("lenet5", "cnn"):
        assert parsed(f"--model {model} --activation tanh").l2 == 0.05
        assert parsed(f"--model {model} --optimizer sgd").l2 == 0, "coupled, so much would be all that is learned"
        assert parsed(f"--model {model} --optimizer sgd --l2 0.01").l2 == 0.01
    assert parsed("--optimizer adamw").l2 == 0


@pytest.mark.parametrize(
    ("given", "value"), [("lr", 0.25), ("loss", "sigmoid-cross-entropy"), ("init", "zeros"), ("l2", 0.125)]
)
@pytest.mark.parametrize("form", ["--{} {}", "--{}={}"])
def test_what_the_command_line_sets_stays(given: str, value: object, form: str) -> None:
    config = parsed(f"--activation relu --optimizer adam {form.format(given, value)}")
    assert getattr(config, given) == value
    if given != "loss":
        assert config.loss == "softmax-cross-entropy"


@pytest.mark.parametrize("preset", preset_names())
def test_what_a_named_preset_sets_stays(preset: str) -> None:
    own, changed = load_preset(preset), parsed(f"--preset {preset} --optimizer muon --eps 1e-8")
    for name in {"loss", "init", "lr"} & preset_values(preset).keys():
        assert getattr(changed, name) == getattr(own, name), name


def test_what_a_preset_leaves_out_follows_from_what_it_sets(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text('activation = ["relu"]\nhidden = [20]\n')
    assert (load_preset(str(mine)).loss, load_preset(str(mine)).init) == ("softmax-cross-entropy", "he")
    assert parsed(f"--preset {mine}") == load_preset(str(mine))
    assert parsed(f"--preset {mine} --optimizer adam").lr == 0.005, "and from the command line"
    mine.write_text('activation = ["relu"]\nlr = 0.7\n')
    assert parsed(f"--preset {mine} --optimizer adam").lr == 0.7


def test_outputs_that_were_filled_in_are_not_taken_for_named(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text('activation = ["relu"]\nloss = "quadratic"\n')
    assert parsed(f"--preset {mine}").activation == ("relu", "relu", "sigmoid")
    assert parsed(f"--preset {mine} --hidden 30").activation == ("relu", "sigmoid")
    assert parsed(f"--preset {mine} --loss softmax-cross-entropy").activations[-1] == "identity"
    assert parsed(f"--preset {mine} --model lenet5").activation == ("relu",)
    assert "sigmoid outputs: chosen for relu, quadratic and sgd" in notes(f"--preset {mine} --init he --lr 1")[0]


@pytest.mark.parametrize("line", ["--activation --loss quadratic", "--hidden --activation relu", "--momentum 1 --lr 1"])
def test_a_wrong_value_is_refused_where_others_are_left_out(line: str) -> None:
    with pytest.raises(UserError, match=r"^--(activation|hidden|momentum) is "):
        train.parse(line.split())


def test_a_run_is_resumed_with_what_it_had(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(replace(load_preset("3b1b"), activation=("relu",)).to_toml())
    assert parsed(f"--resume {tmp_path}").lr == 10


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("", None),
        ("--epochs 3 --seed 4 --batch-size 10", None),
        ("--preset best-mlp", None),
        ("--lr 3", None),
        (
            "--activation relu",
            "softmax cross-entropy, he, rate 0.1: chosen for relu and sgd; --loss, --init or --lr chang",
        ),
        (
            "--activation relu --lr 1",
            "softmax cross-entropy, he: chosen for relu and sgd; --loss or --init changes that",
        ),
        ("--activation relu --loss softmax-cross-entropy --init he --lr 1", None),
        (
            "--optimizer adam",
            "softmax cross-entropy, xavier, rate 0.005: chosen for sigmoid and adam; --loss, --init or",
        ),
        ("--activation tanh --loss quadratic", "xavier, rate 0.3: chosen for tanh, quadratic and sgd; --init or --lr"),
        (
            "--activation relu --loss quadratic --init he --lr 1",
            "sigmoid outputs: chosen for relu, quadratic and sgd; --act",
        ),
        ("--hidden 100", "chosen for sigmoid, hidden layers of 100 and sgd;"),
        ("--label-smoothing 0.1", "chosen for sigmoid, label smoothing and sgd;"),
        ("--activation relu relu sigmoid", "quadratic, he, rate 0.3: chosen for relu, sigmoid outputs and sgd;"),
        ("--preset 3b1b --model lenet5", None),
        (
            "--model cnn --optimizer sgd --loss quadratic --init he --lr 1",
            "L2 0: chosen for relu, quadratic and sgd; --l2",
        ),
        ("--momentum 0.9", "chosen for sigmoid and sgd with momentum 0.9;"),
        (
            "--model cnn --optimizer sgd",
            "softmax cross-entropy, he, rate 0.1, L2 0: chosen for relu and sgd; --loss, --init,",
        ),
    ],
)
def test_one_line_says_what_was_filled_in(line: str, told: str | None) -> None:
    said = [note for note in notes(line) if not note.startswith("note: ")]
    assert len(said) == (told is not None)
    assert told is None or told in said[0]


def test_the_line_follows_the_data_and_the_written_configuration_holds_what_it_says(
    tmp_path: Path, capsys: Capsys
) -> None:
    done = call(capsys, train.main, "--activation", "gelu", "--max-steps", 1, "--run-dir", tmp_path / "run")
    assert done.status == 0
    assert done.out.splitlines()[1].startswith("softmax cross-entropy, he, rate 0.1: chosen for gelu and sgd;")
    written = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    assert (written["loss"], written["init"], written["lr"]) == ("softmax-cross-entropy", "he", 0.1)
    assert written["activation"] == ["gelu", "gelu", "identity"]
    printed = call(capsys, train.main, "--activation", "gelu", "--print-config")
    assert tomllib.loads(printed.out)["lr"] == 0.1


# What was measured


def test_everything_that_can_be_chosen_is_measured_and_on_the_page() -> None:
    wanted = {(job.model, job.optimizer, job.cost, job.activation) for job in jobs()}
    figures = defaults.measured()
    for model, optimizer, cost, activation in wanted:
        assert all(0 <= accuracy <= 1 for accuracy in figures[model][optimizer][cost][activation])
    mlp = {(optimizer, cost, activation) for model, optimizer, cost, activation in wanted if model == "mlp"}
    assert mlp == {(o, c, a) for o in OPTIMIZERS for c in LOSSES for a in ACTIVATIONS}
    page = (ROOT / "docs" / "defaults.md").read_text(encoding="utf-8")
    for cost in LOSSES:
        table = page.partition(f"### 784-16-16-10, {defaults.spelled(cost)}\n")[2].partition("###")[0]
        for optimizer in OPTIMIZERS:
            (row,) = re.findall(rf"^\| {optimizer} \| (.*) \|$", table, re.M)
            rate, *cells = row.split(" | ")
            assert float(rate) == Job("mlp", optimizer, cost, "relu", 0).config.lr
            for activation, cell in zip(ACTIVATIONS, cells, strict=True):
                accuracy = mean(figures["mlp"][optimizer][cost][activation])
                assert cell.strip("*").split(" ± ")[0] == f"{100 * accuracy:.1f}"
                assert cell.startswith("*") == (accuracy < defaults.GOOD)


@pytest.mark.slow
def test_what_is_measured_is_what_train_makes_of_such_a_command_line() -> None:
    for job in (job for job in jobs() if job.seed == 0):
        line = f"--model {job.model} --optimizer {job.optimizer} --loss {job.cost} --activation {job.activation}"
        asked, measured = (vars(FAMILIES[job.model].settled(config)) for config in (parsed(line), job.config))
        for name in (*CHOSEN, "activation", "hidden", "momentum", "schedule", "batch_size", "shift", "rotate"):
            assert asked.get(name) == measured.get(name), (line, name)


def test_with_the_cost_that_is_filled_in_every_network_learns_but_for_few() -> None:
    """Ten activations for each optimizer; the cost is quadratic for sigmoid with sgd, else softmax cross-entropy."""
    for optimizer, by_cost in defaults.measured()["mlp"].items():
        good = 0
        for activation in ACTIVATIONS:
            cost = parsed(f"--optimizer {optimizer} --activation {activation}").loss
            good += mean(by_cost[cost][activation]) >= defaults.GOOD
        assert good >= 9, optimizer
    for model in ("lenet5", "cnn"):
        for by_cost in defaults.measured()[model].values():
            ((accuracies,),) = ([*by_activation.values()] for by_activation in by_cost.values())
            assert mean(accuracies) >= defaults.GOOD


@pytest.mark.slow
def test_a_combination_that_learns_badly_is_named_with_its_figure() -> None:
    found = 0
    for optimizer, by_cost in defaults.measured()["mlp"].items():
        for cost, by_activation in by_cost.items():
            for activation, accuracies in by_activation.items():
                said = [note for note in notes(f"--optimizer {optimizer} --activation {activation} --loss {cost}")]
                bad = [note for note in said if note.startswith(f"note: {optimizer} with {activation} and ")]
                assert len(bad) == (mean(accuracies) < defaults.GOOD)
                if bad:
                    found += 1
                    assert f"reached only {mean(accuracies):.0%} in 8 epochs of the sample" in bad[0]
    assert found, "else the sentence is for nobody"


def test_the_cost_that_serves_better_is_named_with_its_figure() -> None:
    (_, said) = notes("--optimizer lion --activation relu --loss quadratic")
    better = mean(defaults.measured()["mlp"]["lion"]["softmax-cross-entropy"]["relu"])
    assert f"; with --loss softmax-cross-entropy it reached {better:.0%} (docs/defaults.md)" in said


def test_nothing_is_said_of_settings_that_were_not_measured() -> None:
    bad = "--optimizer lion --activation sigmoid --loss quadratic"
    assert any("reached only" in note for note in notes(bad))
    for other in ("--lr 0.5", "--init he", "--activation sigmoid tanh sigmoid"):
        assert not any("reached only" in note for note in notes(f"{bad} {other}")), other


def test_the_figures_can_be_read_by_everybody() -> None:
    figures = json.loads(defaults.MEASURED.read_text())
    assert figures["epochs"] == 8
    assert "torch" in figures["machine"]


# What really learns


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    [
        "--activation relu",
        "--activation tanh",
        "--optimizer adam",
        "--optimizer lion --activation gelu",
        "--momentum 0.9",
        "--hidden 100",
        "--hidden 60 40 --activation leaky_relu --optimizer rmsprop",
        "--activation relu --loss squared-error",
        "--dtype bfloat16 --activation silu --optimizer muon",
    ],
)
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


@pytest.mark.slow
def test_the_first_command_does_what_it_did(tmp_path: Path, capsys: Capsys) -> None:
    """On the bundled sample with seed 0: 90.4% after 50 epochs, no line about settings or a run that does not learn."""
    options = ("--impl", "manual", "--dataset", "sample", "--threads", 1, "--run-dir", tmp_path / "run")
    done = call(capsys, train.main, *options)
    assert done.status == 0
    assert done.out.startswith("the bundled sample of MNIST")
    assert "does not learn" not in done.out
    assert running.values(tmp_path / "run", "accuracy/test")[5000] == pytest.approx(0.904, abs=0.01)
