"""How the tests run what a user runs: a script's `main` in this process, a process of its own, or just the loop."""

import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from lessons.runs import Silent
from training import checkpoint
from training.dashboard.metrics import read_metrics
from training.dashboard.tensorboard import MetricsWriter
from training.families.networks import make_model
from training.learners.factory import make_learner, make_manual
from training.loop import Loop
from training.prepare import prepare

ROOT = Path(__file__).resolve().parents[2]


def resolved(config, data):
    """The configuration with nothing left open, as a run has it."""
    return prepare(config, data)[0]


def learner_of(config, data):
    return make_learner(config, data, make_model(config, data))


def manual_of(config, data):
    return make_manual(config, data, make_model(config, data))


class Done(NamedTuple):
    status: int | str | None
    out: str
    err: str


def call(capsys, main, *arguments):
    """A script's `main` in this process."""
    capsys.readouterr()
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as exit:  # tyro's way to refuse a command line
        status = exit.code
    return Done(status, *capsys.readouterr())


def start(script, *arguments):
    """A script as a process of its own, with pipes for its output."""
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def run(script, *arguments):
    process = start(script, *arguments)
    out, err = process.communicate()
    return Done(process.returncode, out, err)


def write_npz(path, train=200, test=60, features=5, classes=3):
    """Arrays for --dataset npz: the class is the largest of the first features, so it can be learned."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(train + test, features)).astype(np.float32)
    y = x[:, :classes].argmax(axis=1)
    np.savez(path, x=x[:train], y=y[:train], x_test=x[train:], y_test=y[train:])
    return path


def write_pictures(path, shape=(7, 6), train=200, test=60):
    """Pictures for --dataset npz: the class is the brightest third, from left to right."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(train + test, *shape)).astype(np.float32)
    y = np.stack([third.mean(axis=tuple(range(1, third.ndim))) for third in np.array_split(x, 3, axis=-1)]).argmax(0)
    np.savez(path, x=x[:train], y=y[:train], x_test=x[train:], y_test=y[train:])
    return path


def train_loop(config, data, run_dir, stop=lambda: False):
    """Only the loop of a run, without its pictures: from the beginning, or from where `last.pt` in `run_dir` stands.

    TensorBoard's files have tests of their own; without them a resumed loop need not wait for a later second.
    """
    run_dir.mkdir(exist_ok=True)
    learner, progress, start_step = learner_of(config, data), None, 0
    if (run_dir / "last.pt").exists():
        saved = checkpoint.load(run_dir)
        learner.load_state_dict(saved)
        progress = saved["progress"]
        start_step = learner.steps + 1 if learner.steps or progress["evaluated"] else 0
        forget_events(run_dir)
    with closing(MetricsWriter(run_dir, config, data, start_step=start_step, environment={})) as writer:
        loop = Loop(config, data, learner, writer, Silent(), run_dir, progress, stop)
        return loop, loop.run()


def at_poll(number):
    """A question that is answered with no until it has been asked that many times."""
    asked = iter(range(number))
    return lambda: next(asked, None) is None


def train_in_pieces(config, data, run_dir, polls=4):
    """The loop, stopped at every so many-th question and gone on with, to the end; at which steps it was stopped."""
    stopped_at = []
    while not (outcome := train_loop(config, data, run_dir, stop=at_poll(polls))[1]).finished:
        stopped_at.append(outcome.steps)
    return stopped_at


def forget_events(run_dir):
    for path in run_dir.glob("events.*"):
        path.unlink()


def metrics(run_dir):
    """The lines of metrics.jsonl, without the speed, which no two runs share."""
    lines = read_metrics(run_dir / "metrics.jsonl")
    return [{tag: value for tag, value in line.items() if tag != "examples_per_second"} for line in lines]


def values(run_dir, tag):
    """step → value of one tag."""
    return {line["step"]: line[tag] for line in read_metrics(run_dir / "metrics.jsonl") if tag in line}


def assert_same(a, b, where=""):
    """Equal in every bit: nested dicts and lists of tensors and plain values."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}[{key!r}]")
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype, where
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def assert_same_run(a, b):
    """The same parameters, optimizer state and progress, the same best epoch, the same curves."""
    for name in ("last.pt", "best.pt", "first.pt"):
        one, other = checkpoint.load(a / name), checkpoint.load(b / name)
        if name == "first.pt":  # which may have been asked for fewer steps
            other["config"] = one["config"]
        assert_same(one, other, name)
    assert metrics(a) == metrics(b)


def one_sentence(err):
    """What a script said on stderr, on one line and without tyro's box; fails if it is no sentence for a user."""
    assert "Traceback" not in err
    assert "Error:" not in err  # an exception's name
    text = " ".join(line.strip(" │─╭╮╰╯") for line in err.splitlines() if line.strip(" -"))
    assert text.strip(), "nothing on stderr"
    return text


def files(directory):
    return {path.name for path in directory.iterdir()}


def flags(options):
    """{"batch_size": 30, "hidden": (4, 3)} as a command line."""
    for name, value in options.items():
        yield "--" + name.replace("_", "-")
        yield from map(str, value) if isinstance(value, tuple) else (str(value),)
