"""A run that was stopped, anywhere and by anything, goes on as if it had not been."""

import shutil
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from manual_backprop.optimizers import OPTIMIZERS
from tests.support import running
from tests.support.running import assert_same, call, flags, metrics, resolved, train_loop, values, write_npz
from training import checkpoint, loop
from training.config import Config
from training.data import Dataset, load
from training.families.configure import configure

Capsys = pytest.CaptureFixture[str]
IMPLS = ["manual", "reference", "both"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """200 training examples: seven batches of 30, the last of 20."""
    return load("npz", write_npz(tmp_path_factory.mktemp("data") / "arrays.npz"))


def config(data: Dataset, **changes: object) -> Config:
    settings = {"hidden": (4, 3), "lr": 1.0, "momentum": 0.9, "l2": 1e-3, "batch_size": 30, "epochs": 2}
    settings |= {"log_every": 4, "histogram_every": 5}
    return resolved(configure(**(settings | changes)), data)


def assert_same_run(a: Path, b: Path) -> None:
    """The same parameters, optimizer state and progress, the same best epoch, the same curves."""
    for name in ("last.pt", "best.pt"):
        assert_same(checkpoint.load(a / name), checkpoint.load(b / name), name)
    assert metrics(a) == metrics(b)


def at_poll(number: int) -> Callable[[], bool]:
    """A question that is answered with no until it has been asked that many times."""
    asked = iter(range(number))
    return lambda: next(asked, None) is None


def assert_pieces_make_the_whole(settings: Config, data: Dataset, tmp_path: Path) -> None:
    """Stopped again and again, more than three times, the run in `pieces` is that in `whole`."""
    pieces, finished = 0, False
    while not finished:
        _, outcome = train_loop(settings, data, tmp_path / "pieces", stop=at_poll(4))
        forget_events(tmp_path / "pieces")
        pieces, finished = pieces + 1, outcome.finished
    assert pieces > 3
    assert_same_run(tmp_path / "pieces", tmp_path / "whole")


def forget_events(run_dir: Path) -> None:
    """TensorBoard's files have tests of their own; without them a resumed loop need not wait for a later second."""
    for path in run_dir.glob("events.*"):
        path.unlink()


@pytest.mark.parametrize("impl", ["manual", *(pytest.param(impl, marks=pytest.mark.slow) for impl in IMPLS[1:])])
def test_stopped_after_any_step_and_in_any_evaluation(
    impl: str, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(data, impl=impl)
    whole = tmp_path / "whole"
    train_loop(settings, data, whole)

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
        forget_events(run_dir)
        _, outcome = train_loop(settings, data, run_dir)
        assert outcome.finished
        assert_same_run(run_dir, whole)
        shutil.rmtree(run_dir)
        number += 1
    evaluated = 1 + 2  # before the evaluation, and in its two halves
    assert Counter(stopped_at) == {step: 1 for step in range(15)} | {
        0: 1 + evaluated,
        7: 1 + evaluated,
        14: 1 + evaluated,
    }


@pytest.mark.parametrize(
    "impl", ["manual", "reference", *(pytest.param(impl, marks=pytest.mark.slow) for impl in IMPLS[2:])]
)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_stopped_again_and_again(optimizer: str, impl: str, data: Dataset, tmp_path: Path) -> None:
    settings = config(data, momentum=0.0, optimizer=optimizer, impl=impl, lr=0.01)
    train_loop(settings, data, tmp_path / "whole")
    assert_pieces_make_the_whole(settings, data, tmp_path)


RULES: dict[str, object] = {"dropout": 0.3, "l1": 1e-3, "clip_norm": 0.1, "max_norm": 1.0}


@pytest.mark.parametrize("impl", ["manual", "reference", pytest.param("both", marks=pytest.mark.slow)])
def test_with_dropout_penalties_and_limits(impl: str, data: Dataset, tmp_path: Path) -> None:
    """The masks are a function of seed and step, so they need no state."""
    settings = config(data, impl=impl, **RULES)
    train_loop(settings, data, tmp_path / "whole")
    train_loop(settings, data, tmp_path / "stopped", stop=at_poll(6))
    forget_events(tmp_path / "stopped")
    train_loop(settings, data, tmp_path / "stopped")
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


SCHEDULES = {
    "step": {"schedule": "step", "lr_epochs": 1, "warmup": 3},
    "exponential": {"schedule": "exponential", "lr_epochs": 1},
    "one-cycle": {"schedule": "one-cycle"},
    "plateau": {"schedule": "plateau", "lr_epochs": 1},
    "halve": {"schedule": "halve", "lr_epochs": 1},
    "early stopping": {"patience": 1, "lr": 1e-9},
}


@pytest.mark.parametrize("options", SCHEDULES.values(), ids=SCHEDULES)
def test_with_any_schedule(options: dict, tmp_path: Path) -> None:
    data = load("npz", write_npz(tmp_path / "arrays.npz"), validation=20)
    settings = config(data, **{"validation": 20, "epochs": 4, "lr": 30.0, **options})
    train_loop(settings, data, tmp_path / "whole")
    finished = False
    while not finished:
        _, outcome = train_loop(settings, data, tmp_path / "pieces", stop=at_poll(4))
        forget_events(tmp_path / "pieces")
        finished = outcome.finished
    assert_same_run(tmp_path / "pieces", tmp_path / "whole")


def test_a_run_that_stopped_early_is_finished(tmp_path: Path, capsys: Capsys) -> None:
    run_dir = tmp_path / "run"
    options = command_line(tmp_path, run_dir, epochs=50, validation=20, patience=1, lr=1e-9)
    done = call(capsys, train.main, *options)
    assert done.status == 0
    assert done.out.splitlines()[-1].startswith("ended early at step 12, no better accuracy for 1 epoch; test accuracy")
    saved = checkpoint.load(run_dir)
    assert saved["steps"] == 12
    done = call(capsys, train.main, "--resume", run_dir)
    assert done.status == 0
    assert "is finished, at step 12: it ended early, no better accuracy for 1 epoch" in done.out
    assert_same(checkpoint.load(run_dir), saved)


def test_a_checkpoint_from_before_there_were_plateaus_goes_on(data: Dataset, tmp_path: Path) -> None:
    settings = config(data)
    train_loop(settings, data, tmp_path / "whole")
    train_loop(settings, data, tmp_path / "old", stop=at_poll(6))
    forget_events(tmp_path / "old")
    saved = checkpoint.load(tmp_path / "old")
    for key in ("waited", "plateau"):
        del saved["progress"][key]  # type: ignore[misc]
    checkpoint.save(saved, tmp_path / "old" / "last.pt")
    train_loop(settings, data, tmp_path / "old")
    assert_same(checkpoint.load(tmp_path / "old")["model"], checkpoint.load(tmp_path / "whole")["model"])


def test_with_a_limit_of_steps_in_the_middle_of_an_epoch(data: Dataset, tmp_path: Path) -> None:
    settings = config(data, max_steps=10)
    train_loop(settings, data, tmp_path / "whole")
    train_loop(settings, data, tmp_path / "stopped", stop=at_poll(6))
    forget_events(tmp_path / "stopped")
    train_loop(settings, data, tmp_path / "stopped")
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")
    assert list(values(tmp_path / "whole", "loss/test")) == [0, 7, 10]


def test_a_finished_run_with_more_steps_is_the_longer_run(data: Dataset, tmp_path: Path) -> None:
    """Where the schedule does not depend on the length."""
    train_loop(config(data, schedule="constant", epochs=4), data, tmp_path / "long")
    for epochs in (2, 4):
        train_loop(config(data, schedule="constant", epochs=epochs), data, tmp_path / "longer")
        forget_events(tmp_path / "longer")
    assert_same(checkpoint.load(tmp_path / "long")["model"], checkpoint.load(tmp_path / "longer")["model"])
    assert metrics(tmp_path / "long") == metrics(tmp_path / "longer")


# The script


def command_line(tmp_path: Path, run_dir: Path, **options: object) -> list[str]:
    npz = tmp_path / "arrays.npz"
    if not npz.exists():
        write_npz(npz)
    settings = {"dataset": "npz", "data_dir": npz, "hidden": (4, 3), "batch_size": 30, "schedule": "constant"}
    return list(flags(settings | {"momentum": 0.5, "log_every": 50, "run_dir": run_dir} | options))


def assert_no_step_twice(run_dir: Path) -> None:
    """Neither in metrics.jsonl nor in what TensorBoard shows."""
    seen = Counter((line["step"], tag) for line in metrics(run_dir) for tag in line if tag != "step")
    assert max(seen.values()) == 1
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0, "histograms": 0, "images": 0})
    events.Reload()
    for tag in events.Tags()["scalars"]:
        steps = [event.step for event in events.Scalars(tag)]
        assert steps == sorted(set(steps)), tag
        if tag != "examples_per_second":
            assert steps == list(values(run_dir, tag)), tag
    for tag in events.Tags()["histograms"]:
        steps = [event.step for event in events.Histograms(tag)]
        assert steps == sorted(set(steps)), tag


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)],
    ids=["INT", "TERM", "KILL"],
)
def test_a_signal_and_then_resume(number: signal.Signals, status: int, tmp_path: Path, capsys: Capsys) -> None:
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    process = running.start("train.py", *command_line(tmp_path, stopped, epochs=10**9))
    assert process.stdout is not None
    while not process.stdout.readline().startswith("epoch          3/"):
        assert process.poll() is None
    process.send_signal(number)
    out, err = process.communicate()
    assert (process.returncode, err) == (status, "")
    saved = checkpoint.load(stopped)
    if number != signal.SIGKILL:
        assert f"stopped at step {saved['steps']:,} (--resume {stopped} goes on)" in out.splitlines()[-1]

    steps = saved["steps"] + 100
    assert call(capsys, train.main, "--resume", stopped, "--max-steps", steps).status == 0
    assert call(capsys, train.main, *command_line(tmp_path, whole, max_steps=steps, epochs=10**9)).status == 0
    assert_same_run(stopped, whole)
    assert (stopped / "config.toml").read_text() == (whole / "config.toml").read_text()
    assert_no_step_twice(stopped)


@pytest.mark.slow
def test_ctrl_c_before_the_first_step(tmp_path: Path) -> None:
    """Wherever between the loading of the data and the first epoch it arrives."""
    process = running.start("train.py", *command_line(tmp_path, tmp_path / "run", epochs=10**9))
    assert process.stdout is not None
    assert process.stdout.readline().startswith("arrays from")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert (process.returncode, err) == (130, "")


@pytest.mark.slow
def test_killed_in_the_first_epoch(tmp_path: Path, capsys: Capsys) -> None:
    """Nothing but step 0 is saved, and its values and histograms are written already."""
    stopped = tmp_path / "stopped"
    process = running.start("train.py", *command_line(tmp_path, stopped, batch_size=1, epochs=10**9))
    assert process.stdout is not None
    while not process.stdout.readline().startswith("epoch          0/"):
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    steps = checkpoint.load(stopped)["steps"] + 300
    assert call(capsys, train.main, "--resume", stopped, "--max-steps", steps).status == 0
    assert_no_step_twice(stopped)


def test_a_finished_run_says_so_and_stays_as_it_is(tmp_path: Path, capsys: Capsys) -> None:
    run_dir = tmp_path / "run"
    assert call(capsys, train.main, *command_line(tmp_path, run_dir, epochs=2)).status == 0
    before = {path.name: path.read_bytes() for path in run_dir.iterdir()}
    done = call(capsys, train.main, "--resume", run_dir)
    assert done.status == 0
    assert "is finished" in done.out
    assert "--epochs" in done.out
    assert {path.name: path.read_bytes() for path in run_dir.iterdir()} == before


@pytest.mark.parametrize(
    ("option", "number", "told"),
    [("--epochs", 1, "is at step 14 already"), ("--max-steps", 13, "end it at step 13: give more")],
)
def test_a_run_beyond_its_new_end_is_refused(
    option: str, number: int, told: str, tmp_path: Path, capsys: Capsys
) -> None:
    run_dir = tmp_path / "run"
    assert call(capsys, train.main, *command_line(tmp_path, run_dir, epochs=2)).status == 0
    before = {path.name: path.read_bytes() for path in run_dir.iterdir()}
    done = call(capsys, train.main, "--resume", run_dir, option, number)
    assert (done.status, done.err.count("\n")) == (2, 1)
    assert told in done.err
    assert {path.name: path.read_bytes() for path in run_dir.iterdir()} == before


def test_a_run_cannot_become_shorter_than_its_warmup(tmp_path: Path, capsys: Capsys) -> None:
    run_dir = tmp_path / "run"
    assert call(capsys, train.main, *command_line(tmp_path, run_dir, epochs=2, warmup=12)).status == 0
    done = call(capsys, train.main, "--resume", run_dir, "--max-steps", 12)
    assert (done.status, done.err) == (
        2,
        "train.py: --warmup is 12, but it must be less than the run's 12 steps\n",
    )


@pytest.mark.slow
def test_stopped_between_the_last_evaluation_and_the_final_figures(tmp_path: Path, capsys: Capsys) -> None:
    run_dir = tmp_path / "run"
    assert call(capsys, train.main, *command_line(tmp_path, run_dir, epochs=1)).status == 0
    lines = (run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
    assert "hparam/accuracy" in lines[-1]
    (run_dir / "metrics.jsonl").write_text("".join(lines[:-1]))
    forget_events(run_dir)
    assert call(capsys, train.main, "--resume", run_dir).status == 0
    assert (run_dir / "metrics.jsonl").read_text() == "".join(lines)
    events = EventAccumulator(str(run_dir))
    events.Reload()
    assert "images/confusion_matrix" in events.Tags()["images"]


@pytest.mark.slow
def test_more_epochs_for_a_finished_run(tmp_path: Path, capsys: Capsys) -> None:
    run_dir = tmp_path / "run"
    assert call(capsys, train.main, *command_line(tmp_path, run_dir, epochs=2)).status == 0
    assert call(capsys, train.main, "--resume", run_dir, "--epochs", 3).status == 0
    assert list(values(run_dir, "loss/test")) == [0, 7, 14, 21]
    assert "epochs = 3\n" in (run_dir / "config.toml").read_text()
    assert torch.load(run_dir / "last.pt", weights_only=True)["config"]["epochs"] == 3
    assert_no_step_twice(run_dir)


@pytest.mark.parametrize("impl", ["manual", pytest.param("reference", marks=pytest.mark.slow)])
@pytest.mark.parametrize("eval_every", [3, 7, 10])
def test_stopped_between_evaluations_that_are_no_epochs(
    eval_every: int, impl: str, data: Dataset, tmp_path: Path
) -> None:
    settings = config(data, impl=impl, eval_every=eval_every, log_every=8, histogram_every=0)
    train_loop(settings, data, tmp_path / "whole")
    assert list(values(tmp_path / "whole", "accuracy/test")) == sorted({*range(0, 15, eval_every), 14})
    assert_pieces_make_the_whole(settings, data, tmp_path)


def test_how_often_it_is_evaluated_changes_no_parameter(data: Dataset, tmp_path: Path) -> None:
    for eval_every in (0, 1, 4):
        train_loop(config(data, eval_every=eval_every), data, tmp_path / str(eval_every))
    once, always, sometimes = (checkpoint.load(tmp_path / str(eval_every)) for eval_every in (0, 1, 4))
    assert_same(once["model"], always["model"])
    assert_same(once["model"], sometimes["model"])


def test_a_checkpoint_of_format_1_goes_on(data: Dataset, tmp_path: Path) -> None:
    settings = config(data, epochs=3)
    train_loop(settings, data, tmp_path / "whole")
    train_loop(settings, data, tmp_path / "old", stop=at_poll(14))
    forget_events(tmp_path / "old")
    saved = torch.load(tmp_path / "old" / "last.pt", weights_only=True)
    progress = saved["progress"]
    assert progress["best"] > 0, "there is something to lose"
    progress["best_accuracy"], progress["accuracy"] = progress.pop("best"), progress.pop("latest")
    torch.save({**saved, "format": 1}, tmp_path / "old" / "last.pt")

    loaded = checkpoint.load(tmp_path / "old")
    assert loaded["format"] == 1, "whoever loads it can see how old it is"
    assert loaded["progress"].keys() == checkpoint.load(tmp_path / "whole")["progress"].keys()
    train_loop(settings, data, tmp_path / "old")
    assert_same_run(tmp_path / "old", tmp_path / "whole")
    assert checkpoint.load(tmp_path / "old")["format"] == 2
