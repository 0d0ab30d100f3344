"""A run that was stopped, by anything and whatever its options, goes on from its checkpoint as if it had not been.

With every family and implementation this is in test_runs.py.
"""

import shutil
import signal
import subprocess
import sys
from collections import Counter, OrderedDict

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import train
from manual_backprop.optimizers import OPTIMIZERS
from tests.support import running
from tests.support.refusals import assert_refused, contents
from tests.support.running import ROOT, assert_same, assert_same_run, at_poll, call, files, flags, resolved, train_loop
from training import checkpoint, loop
from training.data import load
from training.families.configure import configure


def config(data, **changes):
    settings = {"hidden": (4, 3), "lr": 1.0, "momentum": 0.9, "l2": 1e-3, "batch_size": 30, "epochs": 2}
    return resolved(configure(**(settings | {"log_every": 4, "histogram_every": 5} | changes)), data)


@pytest.mark.slow
@pytest.mark.parametrize("impl", ["manual", *(pytest.param(i, marks=pytest.mark.long) for i in ("reference", "both"))])
def test_stopped_after_any_step_and_in_any_evaluation(impl, data, tmp_path, monkeypatch):
    settings = config(data, impl=impl)
    train_loop(settings, data, tmp_path / "whole")
    stopped_at = []
    while True:
        run_dir = tmp_path / "stopped"
        with monkeypatch.context() as patch:
            patch.setattr(loop, "STEPS_PER_CALL", 1)  # so that it is asked after every step
            _, outcome = train_loop(settings, data, run_dir, stop=at_poll(len(stopped_at)))
        if outcome.finished:
            break
        stopped_at.append(outcome.steps)
        assert checkpoint.load(run_dir)["steps"] == outcome.steps
        assert train_loop(settings, data, run_dir)[1].finished
        assert_same_run(run_dir, tmp_path / "whole")
        shutil.rmtree(run_dir)
    evaluated = 1 + 2  # before the evaluation, and in its two halves
    assert Counter(stopped_at) == {step: 1 for step in range(15)} | {step: 1 + evaluated for step in (0, 7, 14)}


HELD_OUT = {"validation": 20, "epochs": 4, "lr": 30.0}
OPTIONS = {
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


TOLD_TO_EACH = [title for title in OPTIONS if title.startswith("optimizer") or "penalties" in title]  # not to the loop
RESUMED = [(title, "manual") for title in OPTIONS] + [(title, "reference") for title in TOLD_TO_EACH]


@pytest.mark.sweep(6)
@pytest.mark.parametrize(
    ("title", "impl"), [*RESUMED, *(pytest.param(title, "both", marks=pytest.mark.long) for title in TOLD_TO_EACH[-2:])]
)
def test_stopped_again_and_again_with(title, impl, npz, tmp_path):
    """Masks and schedules are functions of seed and step; what follows the evaluations is a part of the progress."""
    options = OPTIONS[title]
    data = load("npz", npz, validation=options.get("validation", 0))
    settings = config(data, impl=impl, **options)
    _, outcome = train_loop(settings, data, tmp_path / "whole")
    every = options.get("eval_every", data.train.steps(30))
    assert list(running.values(tmp_path / "whole", "loss/test")) == sorted(
        {*range(0, outcome.steps, every), outcome.steps}
    )
    assert len(running.train_in_pieces(settings, data, tmp_path / "pieces")) >= 3
    assert_same_run(tmp_path / "pieces", tmp_path / "whole")


def test_a_checkpoint_says_what_it_is_of_and_any_module_with_the_same_names_loads_it_strictly(data, tmp_path):
    loop, _ = train_loop(config(data, epochs=5), data, tmp_path)
    saved = torch.load(tmp_path / "last.pt", weights_only=True)
    known = {"name": "npz", "shape": [5], "classes": ["0", "1", "2"], "task": "classification", "path": data.path}
    assert saved["data"] == known | {"hashes": data.hashes}
    assert saved["config"]["hidden"] == [4, 3]
    assert saved["steps"] == 35
    for tensor in saved["model"].values():  # no view of θ, which would save all of θ for every name
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    x, _ = data.test.batch(torch.arange(len(data.test)), torch.float32)
    layers = {"layer1": nn.Linear(5, 4), "sigmoid1": nn.Sigmoid(), "layer2": nn.Linear(4, 3), "sigmoid2": nn.Sigmoid()}
    module = nn.Sequential(OrderedDict(**layers, layer3=nn.Linear(3, 3), sigmoid3=nn.Sigmoid()))
    module.load_state_dict(saved["model"], strict=True)
    torch.testing.assert_close(module(x).detach(), loop.predict(x), rtol=0, atol=1e-6)


def test_a_failed_save_leaves_the_old_one_and_nothing_else(data, tmp_path):
    train_loop(config(data, epochs=5), data, tmp_path)
    saved, before = checkpoint.load(tmp_path), files(tmp_path)
    saved["model"]["layer1.weight"] = lambda: None  # cannot be pickled
    with pytest.raises(Exception, match="pickle"):
        checkpoint.save(saved, tmp_path / "last.pt")
    assert checkpoint.load(tmp_path)["steps"] == 35
    assert files(tmp_path) == before


KILLER = """
import os, random, signal, sys, time, torch
from pathlib import Path
from training import checkpoint

torch.set_num_threads(1)  # a forked child has none of its parent's threads, and would wait for them
path = Path(sys.argv[1])
saved = checkpoint.load(path)
ready, begun = os.pipe()
rng = random.Random(0)
for _ in range(int(sys.argv[2])):
    child = os.fork()
    if child == 0:
        for steps in range(10**9):
            saved["model"] = {"layer1.weight": torch.full((300, 1000), float(steps))}
            saved["steps"] = steps
            checkpoint.save(saved, path)
            if steps == 0:
                os.write(begun, b"!")
    os.read(ready, 1)
    time.sleep(rng.uniform(0, 0.02))  # a random moment in the loop
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    found = checkpoint.load(path)
    assert torch.equal(found["model"]["layer1.weight"], torch.full((300, 1000), float(found["steps"])))
    print(sorted(file.name for file in path.parent.glob(".*")))
"""


@pytest.mark.slow
def test_kill_9_in_a_loop_of_saves_leaves_a_whole_checkpoint(data, tmp_path):
    train_loop(config(data, epochs=5), data, tmp_path)
    command = [sys.executable, "-c", KILLER, str(tmp_path / "last.pt"), "60"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=600)
    assert (done.returncode, done.stderr) == (0, "")
    leftovers = done.stdout.splitlines()
    assert len(leftovers) == 60
    assert "['.last.pt.tmp']" in leftovers, "no kill fell into a save: this showed nothing"
    assert set(leftovers) <= {"[]", "['.last.pt.tmp']"}, "what a kill leaves does not pile up"

    checkpoint.save(checkpoint.load(tmp_path), tmp_path / "last.pt")
    assert ".last.pt.tmp" not in files(tmp_path)


def of_format_1(saved):
    progress = saved["progress"]
    assert progress["best"] > 0, "there is something to lose"
    progress["best_accuracy"], progress["accuracy"] = progress.pop("best"), progress.pop("latest")
    del saved["memory"], saved["data"]["task"]
    saved["format"] = 1


@pytest.mark.sweep(3)
@pytest.mark.parametrize(("lacks", "version"), [(("waited", "plateau"), 2), (("watch", "proof"), 2), ((), 1)], ids=str)
def test_a_checkpoint_of_an_earlier_version_goes_on(lacks, version, data, tmp_path):
    """There were no plateaus once, nor a watch and a proof, and the first format named other things."""
    settings, old = config(data, epochs=3), tmp_path / "old"
    train_loop(settings, data, tmp_path / "whole")
    train_loop(settings, data, old, stop=at_poll(14))
    saved = torch.load(old / "last.pt", weights_only=True)
    for key in lacks:
        del saved["progress"][key]
    if version == 1:
        of_format_1(saved)
    torch.save(saved, old / "last.pt")
    assert checkpoint.load(old)["format"] == version, "whoever loads it can see how old it is"
    train_loop(settings, data, old)
    found, expected = checkpoint.load(old), checkpoint.load(tmp_path / "whole")
    assert found["format"] == 2
    assert found["progress"].keys() == expected["progress"].keys()
    assert_same(found["model"], expected["model"])
    if version == 1:
        assert_same_run(old, tmp_path / "whole")


def command_line(npz, run_dir, **options):
    settings = {"dataset": "npz", "data_dir": npz, "hidden": (4, 3), "batch_size": 30, "schedule": "constant"}
    return list(flags(settings | {"momentum": 0.5, "log_every": 50, "run_dir": run_dir} | options))


def assert_no_step_twice(run_dir):
    """Neither in metrics.jsonl nor in what TensorBoard shows."""
    seen = Counter((line["step"], tag) for line in running.metrics(run_dir) for tag in line if tag != "step")
    assert max(seen.values()) == 1
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0, "histograms": 0, "images": 0}).Reload()
    for kind, read in (("scalars", events.Scalars), ("histograms", events.Histograms)):
        for tag in events.Tags()[kind]:
            steps = [event.step for event in read(tag)]
            assert steps == sorted(set(steps)), tag
            assert kind == "histograms" or steps == list(running.values(run_dir, tag)), tag


def stopped_by(number, line, *arguments):
    """train.py as a process of its own that got this signal when it had printed a line that begins so."""
    process = running.start("train.py", *arguments)
    while not process.stdout.readline().startswith(line):
        assert process.poll() is None
    process.send_signal(number)
    out, err = process.communicate()
    return running.Done(process.returncode, out, err)


@pytest.mark.long
@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129), ("SIGKILL", -9)])
def test_a_signal_and_then_resume(name, status, npz, tmp_path, capsys):
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    done = stopped_by(signal.Signals[name], "epoch          3/", *command_line(npz, stopped, epochs=10**9))
    assert (done.status, done.err) == (status, "")
    steps = checkpoint.load(stopped)["steps"]
    if name != "SIGKILL":
        assert f"stopped at step {steps:,} (--resume {stopped} goes on)" in done.out.splitlines()[-1]

    assert call(capsys, train.main, "--resume", stopped, "--max-steps", steps + 100).status == 0
    assert call(capsys, train.main, *command_line(npz, whole, max_steps=steps + 100, epochs=10**9)).status == 0
    assert_same_run(stopped, whole)
    assert (stopped / "config.toml").read_text() == (whole / "config.toml").read_text()
    assert_no_step_twice(stopped)


@pytest.mark.slow
def test_ctrl_c_before_the_first_step(npz, tmp_path):
    """Wherever between the loading of the data and the first epoch it arrives."""
    done = stopped_by(signal.SIGINT, "arrays from", *command_line(npz, tmp_path / "run", epochs=10**9))
    assert (done.status, done.err) == (130, "")


@pytest.mark.slow
def test_killed_in_the_first_epoch(npz, tmp_path, capsys):
    """Nothing but step 0 is saved, and its values and histograms are written already."""
    stopped = tmp_path / "stopped"
    stopped_by(signal.SIGKILL, "epoch          0/", *command_line(npz, stopped, batch_size=1, epochs=10**9))
    steps = checkpoint.load(stopped)["steps"] + 300
    assert call(capsys, train.main, "--resume", stopped, "--max-steps", steps).status == 0
    assert_no_step_twice(stopped)


@pytest.fixture(scope="module")
def finished(npz, tmp_path_factory):
    """A run of 14 steps."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    assert train.main(command_line(npz, run_dir, epochs=2, warmup=6)) == 0
    return run_dir


ALREADY = "is at step 14 already, and --epochs and --max-steps end it at step "
MORE = {
    "": "this run is finished, at step 14: more --epochs, or --max-steps, go on with it",
    "--epochs 1": f"{ALREADY}7: give more",
    "--max-steps 13": f"{ALREADY}13: give more",
    "--max-steps 6": "train.py: --warmup is 6, but it must be less than the run's 6 steps",
}


@pytest.mark.slow
@pytest.mark.parametrize("more", MORE)
def test_a_finished_run_stays_as_it_is(more, finished, capsys):
    before = contents(finished)
    done = call(capsys, train.main, "--resume", finished, *more.split())
    if more:
        assert_refused(done, MORE[more])
    else:
        assert done.status == 0
        assert MORE[more] in done.out
    assert contents(finished) == before


@pytest.mark.slow
def test_a_run_that_stopped_early_is_finished(npz, tmp_path, capsys):
    run_dir = tmp_path / "run"
    done = call(capsys, train.main, *command_line(npz, run_dir, epochs=50, validation=20, patience=1, lr=1e-9))
    assert done.status == 0
    assert done.out.splitlines()[-1].startswith("ended early at step 12, no better accuracy for 1 epoch; test accuracy")
    saved = checkpoint.load(run_dir)
    assert saved["steps"] == 12
    done = call(capsys, train.main, "--resume", run_dir)
    assert done.status == 0
    assert "is finished, at step 12: it ended early, no better accuracy for 1 epoch" in done.out
    assert_same(checkpoint.load(run_dir), saved)


@pytest.mark.slow
def test_a_finished_run_gets_its_missing_figures_and_goes_on_with_more_epochs(finished, npz, tmp_path, capsys):
    run_dir = shutil.copytree(finished, tmp_path / "run")
    lines = (run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
    assert "hparam/accuracy" in lines[-1]
    (run_dir / "metrics.jsonl").write_text("".join(lines[:-1]))  # as if stopped after the last evaluation
    running.forget_events(run_dir)
    assert call(capsys, train.main, "--resume", run_dir).status == 0
    assert (run_dir / "metrics.jsonl").read_text() == "".join(lines)
    assert "images/confusion_matrix" in EventAccumulator(str(run_dir)).Reload().Tags()["images"]

    run_dir = shutil.copytree(finished, tmp_path / "more")
    assert call(capsys, train.main, "--resume", run_dir, "--epochs", 3).status == 0
    assert list(running.values(run_dir, "loss/test")) == [0, 7, 14, 21]
    assert call(capsys, train.main, *command_line(npz, tmp_path / "whole", epochs=3, warmup=6)).status == 0
    assert_same(checkpoint.load(run_dir)["model"], checkpoint.load(tmp_path / "whole")["model"])
    assert "epochs = 3\n" in (run_dir / "config.toml").read_text()
    assert checkpoint.load(run_dir)["config"]["epochs"] == 3
    assert_no_step_twice(run_dir)
