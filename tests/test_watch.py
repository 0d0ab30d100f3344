"""A run that does not learn says so: once, at the end of an epoch, with what to try; one that learns is left alone."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from running import call, train_loop, write_npz, write_pictures
from torch import Tensor

import train
from lessons.runs import Silent
from training.config import Config, load_preset
from training.data import Dataset, Split
from training.evaluation import Evaluation
from training.loop import Loop
from training.watch import Watch, advice

Capsys = pytest.CaptureFixture[str]


def told(capsys: Capsys, tmp_path: Path, *options: object) -> list[str]:
    """What train.py says of a run on the sample that does not learn."""
    done = call(capsys, train.main, "--dataset", "sample", *options, "--run-dir", tmp_path / "run")
    assert done.status == 0
    return [line for line in done.out.splitlines() if "does not learn" in line]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "seen", "advised"),
    [
        ("--activation relu --lr 10", "no better than always answering", "--lr 0.1 (it is 10.0)"),
        (
            "--activation relu --init zeros",
            "every neuron of layer1 outputs 0 for every example",
            "--init he (it is zeros)",
        ),
        ("--preset 3b1b --activation relu", "no better than", "--loss softmax-cross-entropy"),
        ("--preset 3b1b --optimizer adam", "no better than", "--lr 0.003 (it is 10.0)"),
        ("--lr 1e-5", "no better than", "--lr 10.0 (it is 1e-05)"),
        ("--hidden 16 16 16 16 16 16", "no better than", "--activation relu, fewer layers"),
        ("--l2 0.03", "no better than", "a smaller --l2 (it is 0.03)"),
        ("--optimizer adam --lr 0.5 --activation identity", "has risen from", "--lr 0.005 (it is 0.5)"),
    ],
)
def test_a_run_that_does_not_learn_says_so_once(
    options: str, seen: str, advised: str, tmp_path: Path, capsys: Capsys
) -> None:
    lines = told(capsys, tmp_path, "--epochs", 3, *options.split())
    assert len(lines) == 1
    assert re.match(r"epoch \d: this run does not learn: ", lines[0])
    assert seen in lines[0]
    assert advised in lines[0].partition("; try ")[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    ["", "--activation relu", "--optimizer adam", "--max-steps 25", "--hidden 30", "--schedule one-cycle --epochs 6"],
)
def test_a_run_that_learns_is_left_alone(options: str, tmp_path: Path, capsys: Capsys) -> None:
    assert told(capsys, tmp_path, "--epochs", 3, *options.split()) == []


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["points", "nnfs-spiral"])
def test_no_recipe_that_learns_is_accused(preset: str, tmp_path: Path, capsys: Capsys) -> None:
    done = call(capsys, train.main, "--preset", preset, "--max-steps", 1500, "--run-dir", tmp_path / "run")
    assert done.status == 0
    assert "does not learn" not in done.out


@pytest.mark.slow
@pytest.mark.parametrize("model", ["lenet5", "cnn"])
def test_convolutional_networks_are_watched_too(model: str, tmp_path: Path, capsys: Capsys) -> None:
    npz = write_pictures(tmp_path / "pictures.npz", shape=(28, 28))
    options = ["--model", model, "--dataset", "npz", "--data-dir", npz, "--epochs", 3, "--run-dir", tmp_path / "run"]
    options += ["--shift", 0, "--rotate", 0, "--activation", "relu", "--init", "zeros", "--batch-size", 20]
    done = call(capsys, train.main, *options)
    assert done.status == 0
    assert len(re.findall("this run does not learn.*--init he", done.out)) == 1


def test_it_is_said_once_even_if_the_run_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = train.run.load_data(Config(dataset="npz", data_dir=str(write_npz(tmp_path / "a.npz"))))
    config = Config(dataset="npz", hidden=(4,), lr=1e-9, batch_size=2, epochs=3, device="cpu", threads=1).resolved(data)
    said: list[str] = []
    monkeypatch.setattr(Silent, "notice", lambda self, text: said.append(text))
    evaluations = iter([False] * 40 + [True])
    train_loop(config, data, tmp_path / "run", stop=lambda: next(evaluations, True))
    assert len(said) == 1
    train_loop(config, data, tmp_path / "run")
    assert len(said) == 1


# The signs, one by one


def watch(total: int = 1000, **options: Any) -> tuple[Watch, Dataset]:
    """Of 100 examples, 40 of which are of the commonest class."""
    y = torch.tensor([0] * 40 + [1] * 30 + [2] * 30)
    split = Split(torch.zeros(100, 2), y)
    data = Dataset("npz", split, split, (2,), ("a", "b", "c"), "")
    return Watch(Config(**options), data, total, {}), data


def evaluated(loss: float, accuracy: float) -> Evaluation:
    return Evaluation(loss, accuracy, torch.empty(0))


def alive(x: Tensor) -> dict[str, Tensor]:
    return {"layer1": torch.ones(len(x), 3), "layer2": torch.ones(len(x), 3)}


def say(see: Watch, step: int, loss: float, accuracy: float, activations: Callable[[Tensor], Any] = alive) -> str:
    return see(step, evaluated(loss, accuracy), evaluated(loss, accuracy), activations)


def test_chance_is_the_commonest_class_and_what_so_many_examples_cannot_tell_from_it() -> None:
    for accuracy, chance in ((0.1, True), (0.4, True), (0.49, True), (0.51, False), (0.9, False)):
        see, _ = watch()
        assert say(see, 0, 2.0, 0.4) == ""
        assert ("no better than always answering a (40.00%)" in say(see, 500, 1.0, accuracy)) == chance


def test_nothing_is_said_before_a_hundred_steps_and_a_tenth_of_the_run_but_at_its_end() -> None:
    cases = (
        (99, 1000, True),
        (100, 1000, False),
        (499, 5000, True),
        (500, 5000, False),
        (30, 30, False),
        (19, 19, True),
    )
    for step, total, early in cases:
        see, _ = watch(total)
        say(see, 0, 2.0, 0.4)
        assert (say(see, step, 2.0, 0.4) == "") == early, (step, total)


@pytest.mark.parametrize(("options", "steps"), [({"schedule": "one-cycle"}, 400), ({"warmup": 250}, 350)], ids=str)
def test_the_rising_part_of_a_schedule_does_not_count(options: dict[str, Any], steps: int) -> None:
    for step, early in ((steps - 1, True), (steps, False)):
        see, _ = watch(1000, **options)
        say(see, 0, 2.0, 0.4)
        assert (say(see, step, 2.0, 0.4) == "") == early


def test_a_cost_that_is_higher_than_before_the_first_step() -> None:
    see, _ = watch()
    assert say(see, 0, 2.0, 0.4) == ""
    assert say(see, 100, 1.9, 0.9) == ""
    assert "has risen from 2 to 3.5;" in say(see, 200, 3.5, 0.9)
    assert say(see, 300, 4.5, 0.9) == "", "it is said already"


def test_a_cost_that_keeps_rising_and_takes_the_accuracy_with_it() -> None:
    see, _ = watch()
    for step, loss, accuracy in ((0, 9.0, 0.4), (100, 1.0, 0.9), (200, 1.2, 0.9), (300, 1.4, 0.9)):
        assert say(see, step, loss, accuracy) == ""
    assert "rises: it was 1, and is 1.6;" in say(see, 400, 1.6, 0.7)


def test_a_cost_that_wavers_or_that_costs_no_accuracy_is_none() -> None:
    for loss, accuracy in (((1.0, 1.2, 1.1, 1.7), 0.7), ((1.0, 1.2, 1.4, 1.7), 0.9), ((1.0, 1.1, 1.2, 1.3), 0.7)):
        see, _ = watch()
        say(see, 0, 9.0, 0.4)
        assert [say(see, 100 * i, c, accuracy if i == 4 else 0.9) for i, c in enumerate(loss, start=1)] == [""] * 4


@pytest.mark.parametrize("layer", ["layer1", "layer2"])
def test_a_hidden_layer_whose_neurons_are_all_dead(layer: str) -> None:
    def activations(x: Tensor) -> dict[str, Tensor]:
        assert len(x) == 100
        a = {name: torch.ones(len(x), 3) for name in ("layer1", "layer2", "layer3")}
        return {**a, layer: torch.zeros(len(x), 3)}

    see, _ = watch()
    say(see, 0, 2.0, 0.4)
    assert f"every neuron of {layer} outputs 0 for every example; try" in say(see, 100, 1.0, 0.9, activations)


def test_one_living_neuron_or_outputs_of_zero_are_no_death() -> None:
    def activations(x: Tensor) -> dict[str, Tensor]:
        hidden = torch.zeros(len(x), 3)
        hidden[7, 1] = 1
        return {"layer1": hidden, "layer2": torch.zeros(len(x), 3)}

    see, _ = watch()
    say(see, 0, 2.0, 0.4)
    assert say(see, 100, 1.0, 0.9, activations) == ""


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, "another --lr, --loss or --optimizer, --activation relu, fewer layers"),
        ({"init": "zeros"}, "--init he (it is zeros)"),
        ({"lr": 10.0, "l2": 0.1}, "--lr 0.1 (it is 10.0)"),
        ({"l2": 0.1, "dropout": 0.9}, "a smaller --l2 (it is 0.1), a smaller --dropout (it is 0.9)"),
        (
            {"loss": "quadratic", "activation": ("relu",), "init": "zeros"},
            "--lr 0.3 (it is 0.1), --init he (it is zeros), --loss softmax-cross-entropy",
        ),
    ],
    ids=str,
)
def test_advice_is_what_would_have_been_chosen(changed: dict[str, Any], said: str) -> None:
    good = Config(activation=("relu", "relu", "identity"), loss="softmax-cross-entropy", lr=0.1, init="he")
    assert advice(replace(good, **changed), 5000) == said
    assert advice(replace(good, **changed), 500) == f"{said}, more --epochs"


def test_a_checkpoint_from_before_there_was_a_watch_goes_on(tmp_path: Path) -> None:
    data = train.run.load_data(Config(dataset="npz", data_dir=str(write_npz(tmp_path / "a.npz"))))
    config = replace(load_preset("3b1b"), dataset="npz", hidden=(4,), epochs=2, device="cpu", threads=1).resolved(data)
    loop, _ = train_loop(config, data, tmp_path / "run", stop=lambda: True)
    old = {name: value for name, value in loop.progress.items() if name not in ("watch", "proof")}
    again = Loop(config, data, loop.learner, loop.writer, Silent(), tmp_path / "run", old)  # type: ignore[arg-type]
    assert again.progress["watch"] == {}
