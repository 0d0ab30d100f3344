"""A run that was stopped, by anything and whatever its options, goes on as if it had not been.

With every family and implementation this is in test_runs.py.
"""

import shutil
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from manual_backprop.optimizers import OPTIMIZERS
from tests.support import running
from tests.support.running import (
    assert_same,
    assert_same_run,
    at_poll,
    call,
    flags,
    forget_events,
    metrics,
    one_sentence,
    resolved,
    train_in_pieces,
    train_loop,
    values,
    write_npz,
)
from training import checkpoint, loop
from training.config import Config
from training.data import Dataset, load
from training.families.configure import configure

Capsys = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_npz(tmp_path_factory.mktemp("data") / "arrays.npz")


@pytest.fixture(scope="module")
def data(npz: Path) -> Dataset:
    """200 training examples: seven batches of 30, the last of 20."""
    return load("npz", npz)


def config(data: Dataset, **changes: object) -> Config:
    settings = {"hidden": (4, 3), "lr": 1.0, "momentum": 0.9, "l2": 1e-3, "batch_size": 30, "epochs": 2}
    settings |= {"log_every": 4, "histogram_every": 5}
    return resolved(configure(**(settings | changes)), data)


@pytest.mark.parametrize(
    "impl",
    [
        pytest.param("manual", marks=pytest.mark.slow),
        *(pytest.param(impl, marks=pytest.mark.long) for impl in ("reference", "both")),
    ],
)
def test_stopped_after_any_step_and_in_any_evaluation(
    impl: str, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(data, impl=impl)
    train_loop(settings, data, tmp_path / "whole")

    stopped_at, number = [], 0
    while True:
        run_dir = tmp_path / str(number)
        with monkeypatch.context() as patch:
            patch.setattr(loop, "STEPS_PER_CALL", 1)  # so that it is asked after every step
            _, outcome = train_loop(settings, data, run_dir, stop=at_poll(number))
        if outcome.finished:
            break
        stopped_at.append(outcome.steps)
        assert checkpoint.load(run_dir)["steps"] == outcome.steps
        _, outcome = train_loop(settings, data, run_dir)
        assert outcome.finished
        assert_same_run(run_dir, tmp_path / "whole")
        shutil.rmtree(run_dir)
        number += 1
    evaluated = 1 + 2  # before the evaluation, and in its two halves
    assert Counter(stopped_at) == {step: 1 for step in range(15)} | {step: 1 + evaluated for step in (0, 7, 14)}


HELD_OUT: dict[str, Any] = {"validation": 20, "epochs": 4, "lr": 30.0}
OPTIONS: dict[str, dict[str, Any]] = {
    **{f"optimizer {name}": {"momentum": 0.0, "optimizer": name, "lr": 0.01} for name in OPTIMIZERS},
    "dropout, penalties and limits": {"dropout": 0.3, "l1": 1e-3, "clip_norm": 0.1, "max_norm": 1.0},
    "a limit in the middle of an epoch": {"max_steps": 10},
    **{f"evaluated every {n} steps": {"eval_every": n, "log_every": 8, "histogram_every": 0} for n in (3, 7, 10)},
    "step": {**HELD_OUT, "schedule": "step", "lr_epochs": 1, "warmup": 3},
    "exponential": {**HELD_OUT, "schedule": "exponential", "lr_epochs": 1},
    "one-cycle": {**HELD_OUT, "schedule": "one-cycle"},
    "plateau": {**HELD_OUT, "schedule": "plateau", "lr_epochs": 1},
    "halve": {**HELD_OUT, "schedule": "halve", "lr_epochs": 1},
    "early stopping": {**HELD_OUT, "patience": 1, "lr": 1e-9},
}


@pytest.mark.sweep(6)
@pytest.mark.parametrize(
    "impl",
    ["manual", pytest.param("reference", marks=pytest.mark.slow), pytest.param("both", marks=pytest.mark.long)],
)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_stopped_again_and_again_with(options: dict[str, Any], impl: str, npz: Path, tmp_path: Path) -> None:
    """Masks and schedules are functions of seed and step; what follows the evaluations is a part of the progress."""
    data = load("npz", npz, validation=options.get("validation", 0))
    settings = config(data, impl=impl, **options)
    _, outcome = train_loop(settings, data, tmp_path / "whole")
    every = options.get("eval_every", data.train.steps(30))
    assert list(values(tmp_path / "whole", "loss/test")) == sorted({*range(0, outcome.steps, every), outcome.steps})
    assert len(train_in_pieces(settings, data, tmp_path / "pieces")) >= 3
    assert_same_run(tmp_path / "pieces", tmp_path / "whole")


def test_a_finished_run_with_more_steps_is_the_longer_run(data: Dataset, tmp_path: Path) -> None:
    """Where the schedule does not depend on the length."""
    train_loop(config(data, schedule="constant", epochs=4), data, tmp_path / "long")
    for epochs in (2, 4):
        train_loop(config(data, schedule="constant", epochs=epochs), data, tmp_path / "longer")
    assert_same(checkpoint.load(tmp_path / "long")["model"], checkpoint.load(tmp_path / "longer")["model"])
    assert metrics(tmp_path / "long") == metrics(tmp_path / "longer")


# Checkpoints of earlier versions


def without(*keys: str) -> Any:
    def old(saved: Any) -> None:
        for key in keys:
            del saved["progress"][key]

    return old


def of_format_1(saved: Any) -> None:
    progress = saved["progress"]
    assert progress["best"] > 0, "there is something to lose"
    progress["best_accuracy"], progress["accuracy"] = progress.pop("best"), progress.pop("latest")
    del saved["memory"], saved["data"]["task"]
    saved["format"] = 1


@pytest.mark.sweep(3)
@pytest.mark.parametrize(
    ("make_old", "version"),
    [(without("waited", "plateau"), 2), (without("watch", "proof"), 2), (of_format_1, 1)],
    ids=["before there were plateaus", "before there was a watch", "format 1"],
)
def test_a_checkpoint_of_an_earlier_version_goes_on(make_old: Any, version: int, data: Dataset, tmp_path: Path) -> None:
    settings = config(data, epochs=3)
    train_loop(settings, data, tmp_path / "whole")
    train_loop(settings, data, tmp_path / "old", stop=at_poll(14))
    saved = torch.load(tmp_path / "old" / "last.pt", weights_only=True)
    make_old(saved)
    torch.save(saved, tmp_path / "old" / "last.pt")
    assert checkpoint.load(tmp_path / "old")["format"] == version, "whoever loads it can see how old it is"
    train_loop(settings, data, tmp_path / "old")
    found, expected = (checkpoint.load(tmp_path / run_dir) for run_dir in ("old", "whole"))
    assert found["format"] == 2
    assert found["progress"].keys() == expected["progress"].keys()
    assert_same(found["model"], expected["model"])
    if version == 1:
        assert_same_run(tmp_path / "old", tmp_path / "whole")


# The script


def command_line(npz: Path, run_dir: Path, **options: object) -> list[str]:
    settings = {"dataset": "npz", "data_dir": npz, "hidden": (4, 3), "batch_size": 30, "schedule": "constant"}
    return list(flags(settings | {"momentum": 0.5, "log_every": 50, "run_dir": run_dir} | options))


def assert_no_step_twice(run_dir: Path) -> None:
    """Neither in metrics.jsonl nor in what TensorBoard shows."""
    seen = Counter((line["step"], tag) for line in metrics(run_dir) for tag in line if tag != "step")
    assert max(seen.values()) == 1
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0, "histograms": 0, "images": 0}).Reload()
    for tag in events.Tags()["scalars"]:
        steps = [event.step for event in events.Scalars(tag)]
        assert steps == sorted(set(steps)), tag
        if tag != "examples_per_second":
            assert steps == list(values(run_dir, tag)), tag
    for tag in events.Tags()["histograms"]:
        steps = [event.step for event in events.Histograms(tag)]
        assert steps == sorted(set(steps)), tag


def begun(line: str, *arguments: object) -> Any:
    """train.py as a process that has printed a line that begins so."""
    process = running.start("train.py", *arguments)
    assert process.stdout is not None
    while not process.stdout.readline().startswith(line):
        assert process.poll() is None
    return process


@pytest.mark.long
@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)],
    ids=["INT", "TERM", "KILL"],
)
def test_a_signal_and_then_resume(
    number: signal.Signals, status: int, npz: Path, tmp_path: Path, capsys: Capsys
) -> None:
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    process = begun("epoch          3/", *command_line(npz, stopped, epochs=10**9))
    process.send_signal(number)
    out, err = process.communicate()
    assert (process.returncode, err) == (status, "")
    saved = checkpoint.load(stopped)
    if number != signal.SIGKILL:
        assert f"stopped at step {saved['steps']:,} (--resume {stopped} goes on)" in out.splitlines()[-1]

    steps = saved["steps"] + 100
    assert call(capsys, train.main, "--resume", stopped, "--max-steps", steps).status == 0
    assert call(capsys, train.main, *command_line(npz, whole, max_steps=steps, epochs=10**9)).status == 0
    assert_same_run(stopped, whole)
    assert (stopped / "config.toml").read_text() == (whole / "config.toml").read_text()
    assert_no_step_twice(stopped)


@pytest.mark.slow
def test_ctrl_c_before_the_first_step(npz: Path, tmp_path: Path) -> None:
    """Wherever between the loading of the data and the first epoch it arrives."""
    process = begun("arrays from", *command_line(npz, tmp_path / "run", epochs=10**9))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert (process.returncode, err) == (130, "")


@pytest.mark.slow
def test_killed_in_the_first_epoch(npz: Path, tmp_path: Path, capsys: Capsys) -> None:
    """Nothing but step 0 is saved, and its values and histograms are written already."""
    stopped = tmp_path / "stopped"
    process = begun("epoch          0/", *command_line(npz, stopped, batch_size=1, epochs=10**9))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    steps = checkpoint.load(stopped)["steps"] + 300
    assert call(capsys, train.main, "--resume", stopped, "--max-steps", steps).status == 0
    assert_no_step_twice(stopped)


@pytest.fixture(scope="module")
def finished(npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 14 steps."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    assert train.main(command_line(npz, run_dir, epochs=2, warmup=6)) == 0
    return run_dir


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "status", "told"),
    [
        ([], 0, "this run is finished, at step 14: more --epochs, or --max-steps, go on with it"),
        (["--epochs", 1], 2, "is at step 14 already, and --epochs and --max-steps end it at step 7: give more"),
        (["--max-steps", 13], 2, "is at step 14 already, and --epochs and --max-steps end it at step 13: give more"),
        (["--max-steps", 6], 2, "train.py: --warmup is 6, but it must be less than the run's 6 steps"),
    ],
    ids=["nothing", "fewer epochs", "fewer steps", "fewer steps than the warm-up"],
)
def test_a_finished_run_stays_as_it_is(
    more: list[object], status: int, told: str, finished: Path, capsys: Capsys
) -> None:
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    done = call(capsys, train.main, "--resume", finished, *more)
    assert done.status == status
    assert told in (one_sentence(done.err) if status else done.out)
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before


@pytest.mark.slow
def test_a_run_that_stopped_early_is_finished(npz: Path, tmp_path: Path, capsys: Capsys) -> None:
    run_dir = tmp_path / "run"
    options = command_line(npz, run_dir, epochs=50, validation=20, patience=1, lr=1e-9)
    done = call(capsys, train.main, *options)
    assert done.status == 0
    assert done.out.splitlines()[-1].startswith("ended early at step 12, no better accuracy for 1 epoch; test accuracy")
    saved = checkpoint.load(run_dir)
    assert saved["steps"] == 12
    done = call(capsys, train.main, "--resume", run_dir)
    assert done.status == 0
    assert "is finished, at step 12: it ended early, no better accuracy for 1 epoch" in done.out
    assert_same(checkpoint.load(run_dir), saved)


@pytest.mark.slow
def test_stopped_between_the_last_evaluation_and_the_final_figures(
    finished: Path, tmp_path: Path, capsys: Capsys
) -> None:
    run_dir = shutil.copytree(finished, tmp_path / "run")
    lines = (run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
    assert "hparam/accuracy" in lines[-1]
    (run_dir / "metrics.jsonl").write_text("".join(lines[:-1]))
    forget_events(run_dir)
    assert call(capsys, train.main, "--resume", run_dir).status == 0
    assert (run_dir / "metrics.jsonl").read_text() == "".join(lines)
    assert "images/confusion_matrix" in EventAccumulator(str(run_dir)).Reload().Tags()["images"]


@pytest.mark.slow
def test_more_epochs_for_a_finished_run(finished: Path, tmp_path: Path, capsys: Capsys) -> None:
    run_dir = shutil.copytree(finished, tmp_path / "run")
    assert call(capsys, train.main, "--resume", run_dir, "--epochs", 3).status == 0
    assert list(values(run_dir, "loss/test")) == [0, 7, 14, 21]
    assert "epochs = 3\n" in (run_dir / "config.toml").read_text()
    assert checkpoint.load(run_dir)["config"]["epochs"] == 3
    assert_no_step_twice(run_dir)
