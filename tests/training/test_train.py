"""train.py as a user runs it."""

import json
import os
import pty
import re
import subprocess
import sys
import tomllib
from contextlib import suppress
from dataclasses import asdict

import pytest
import torch
from PIL import Image

import train
from tests.support import running
from tests.support.running import ROOT, assert_same, call, files, flags
from training.data.mnist import has_mnist
from training.families.configure import configure

RUN_FILES = {"config.toml", "environment.json", "metrics.jsonl", "last.pt", "best.pt", "curves.png"}


def small(npz, run_dir, **options):
    """A command line for a run of 14 steps."""
    defaults = {"dataset": "npz", "data_dir": npz, "hidden": (4, 3), "batch_size": 30, "epochs": 2, "log_every": 3}
    return list(flags(defaults | {"run_dir": run_dir} | options))


@pytest.mark.slow
def test_the_default_is_a_run_on_the_sample_where_there_is_no_mnist(tmp_path, capsys):
    assert not has_mnist(tmp_path)
    run_dir = tmp_path / "runs" / "mine"
    options = {"data_dir": tmp_path, "epochs": 7, "max_steps": 25, "run_dir": run_dir}
    done = call(capsys, train.main, *flags(options))
    assert (done.status, done.err) == (0, "")

    first, *_, last = lines = done.out.splitlines()
    assert "bundled sample of MNIST: 10,000 training and 2,000 test images" in first
    assert "--dataset mnist" in first
    assert tomllib.loads((run_dir / "config.toml").read_text())["dataset"] == "sample"
    assert "weight 16×784, bias 16" in done.out
    assert "13,002" in done.out
    epochs = [line for line in lines if line.startswith("epoch")]
    assert [line.split()[1] for line in epochs] == ["0/7", "1/7"]
    assert "examples/s" in epochs[-1]
    assert lines.index(epochs[0]) == len(lines) - 3, "nothing but these two lines and the last"
    assert not {"\x1b", "\r"} & {*done.out}, "no terminal, no escape sequences"

    accuracy = running.values(run_dir, "accuracy/test")[25]
    for said in (f"test accuracy {accuracy:.2%}", f"tensorboard --logdir {run_dir.parent}", str(run_dir)):
        assert said in last

    assert {name for name in files(run_dir) if not name.startswith("events.")} == RUN_FILES
    with Image.open(run_dir / "curves.png") as picture:
        assert picture.width > 300
    environment = json.loads((run_dir / "environment.json").read_text())
    assert environment["torch"] == torch.__version__
    assert {"python", "device", "threads", "git_commit", "command"} <= environment.keys()


@pytest.mark.slow
def test_the_default_takes_mnist_where_it_lies(mnist_dir, tmp_path, capsys):
    done = call(capsys, train.main, *flags({"data_dir": mnist_dir, "max_steps": 1, "run_dir": tmp_path / "run"}))
    assert done.status == 0
    assert "60,000 training and 10,000 test images" in done.out.splitlines()[0]


@pytest.mark.long
@pytest.mark.parametrize("impl", ["manual", "reference"])
def test_what_is_written_has_nothing_open_and_reproduces_the_run_of_another_process(impl, npz, tmp_path, capsys):
    """Bit for bit."""
    a, b = tmp_path / "a", tmp_path / "b"
    done = running.run("train.py", *small(npz, a, impl=impl, momentum=0.9, l2=1e-3, seed=5))
    assert (done.status, done.err) == (0, "")
    assert "\x1b" not in done.out, "no terminal, no escape sequences"
    written = tomllib.loads((a / "config.toml").read_text())
    assert written.keys() == asdict(configure()).keys()
    assert written["device"] in ("cpu", "cuda")
    assert written["threads"] >= 1
    assert written["activation"] == ["sigmoid", "sigmoid", "identity"]
    assert call(capsys, train.main, "--preset", a / "config.toml", "--run-dir", b).status == 0
    assert_same(torch.load(a / "last.pt", weights_only=True), torch.load(b / "last.pt", weights_only=True))
    assert running.metrics(a) == running.metrics(b)


@pytest.mark.slow
def test_ones_own_pictures_train(tmp_path, capsys):
    for shade, name in ((30, "dark"), (220, "light")):
        folder = tmp_path / "pictures" / name
        folder.mkdir(parents=True)
        for i in range(5):
            Image.new("L", (40 + i, 30), shade + i).save(folder / f"{i}.png")
    options = {"dataset": "images", "data_dir": tmp_path / "pictures", "epochs": 3, "batch_size": 4, "lr": 0.5}
    done = call(capsys, train.main, *flags({**options, "run_dir": tmp_path / "run"}))
    assert done.status == 0
    assert "weight 16×784, bias 16" in done.out
    assert torch.load(tmp_path / "run" / "last.pt", weights_only=True)["data"]["classes"] == ["dark", "light"]


@pytest.mark.slow
def test_runs_on_drawn_points_without_a_directory_of_their_own_get_new_ones_under_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for dataset in ("points", "spiral"):
        done = call(capsys, train.main, *flags({"preset": "points", "dataset": dataset, "max_steps": 20}))
        assert done.status == 0
        assert done.out.startswith(dataset)
    assert files(tmp_path / "runs") == {"points-manual-seed0", "points-manual-seed0-2"}


@pytest.mark.long
def test_a_progress_bar_on_a_terminal(npz, tmp_path):
    ours, theirs = pty.openpty()
    command = [sys.executable, str(ROOT / "train.py"), *small(npz, tmp_path / "run")]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80"}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, env=environment)
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # how Linux says that the other side is closed
        while chunk := os.read(ours, 65536):
            shown += chunk
    os.close(ours)
    assert process.wait() == 0
    text = shown.decode()
    assert "━" in text.split("epoch 2/2")[-1], "a bar stands beside the epoch"
    assert re.search(r"epoch 2/2  test accuracy [\d.]+%  [\d,]+ examples/s", text)
    assert "loss/test" not in text, "the plain line per epoch is for elsewhere"
    assert f"test accuracy {running.values(tmp_path / 'run', 'accuracy/test')[14]:.2%} (best" in text
