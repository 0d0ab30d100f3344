"""train.py as a user runs it."""

import json
import os
import pty
import re
import subprocess
import sys
import tomllib
from dataclasses import asdict

import pytest
import torch
from PIL import Image

import train
from tests.support import running
from tests.support.running import ROOT, assert_same, call, files, flags, write_npz
from training.data.mnist import has_mnist
from training.families.configure import configure

RUN_FILES = {"config.toml", "environment.json", "metrics.jsonl", "last.pt", "best.pt", "curves.png"}
Capsys = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    return write_npz(tmp_path_factory.mktemp("data") / "arrays.npz")


def small(npz, run_dir, **options):
    """A command line for a run of 14 steps."""
    defaults = {"dataset": "npz", "data_dir": npz, "hidden": (4, 3), "batch_size": 30, "epochs": 2, "log_every": 3}
    return list(flags(defaults | {"run_dir": run_dir} | options))


def lines(done):
    return done.out.splitlines()


@pytest.mark.slow
def test_the_default_is_a_run_on_the_sample_where_there_is_no_mnist(tmp_path, capsys):
    assert not has_mnist(tmp_path)
    run_dir = tmp_path / "runs" / "mine"
    options = {"data_dir": tmp_path, "epochs": 7, "max_steps": 25, "run_dir": run_dir}
    done = call(capsys, train.main, *flags(options))
    assert (done.status, done.err) == (0, "")

    assert "bundled sample of MNIST: 10,000 training and 2,000 test images" in lines(done)[0]
    assert "--dataset mnist" in lines(done)[0]
    assert tomllib.loads((run_dir / "config.toml").read_text())["dataset"] == "sample"
    assert "weight 16×784, bias 16" in done.out
    assert "13,002" in done.out
    epochs = [line for line in lines(done) if line.startswith("epoch")]
    assert [line.split()[1] for line in epochs] == ["0/7", "1/7"]
    assert "examples/s" in epochs[-1]
    assert lines(done).index(epochs[0]) == len(lines(done)) - 3, "nothing but these two lines and the last"
    assert "\x1b" not in done.out + done.err, "no terminal, no escape sequences"
    assert "\r" not in done.out + done.err

    last = lines(done)[-1]
    accuracy = running.values(run_dir, "accuracy/test")[25]
    assert f"test accuracy {accuracy:.2%}" in last
    assert f"tensorboard --logdir {run_dir.parent}" in last
    assert str(run_dir) in last

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
    assert "60,000 training and 10,000 test images" in lines(done)[0]


@pytest.mark.long
@pytest.mark.parametrize("impl", ["manual", "reference"])
def test_the_written_configuration_has_nothing_open_and_reproduces_the_run_bit_for_bit(impl, npz, tmp_path, capsys):
    a, b = tmp_path / "a", tmp_path / "b"
    assert call(capsys, train.main, *small(npz, a, impl=impl, momentum=0.9, l2=1e-3, seed=5)).status == 0
    written = tomllib.loads((a / "config.toml").read_text())
    assert written.keys() == asdict(configure()).keys()
    assert written["device"] in ("cpu", "cuda")
    assert written["threads"] >= 1
    assert written["activation"] == ["sigmoid", "sigmoid", "identity"]
    assert call(capsys, train.main, "--preset", a / "config.toml", "--run-dir", b).status == 0
    assert_same(torch.load(a / "last.pt", weights_only=True), torch.load(b / "last.pt", weights_only=True))
    assert running.metrics(a) == running.metrics(b)


@pytest.mark.long
def test_another_process_and_the_default_preset_reproduce_it_too(tmp_path, capsys):
    a, b = tmp_path / "a", tmp_path / "b"
    done = running.run("train.py", *flags({"dataset": "sample", "epochs": 2, "run_dir": a}))
    assert (done.status, done.err) == (0, "")
    assert "\x1b" not in done.out, "no terminal, no escape sequences"
    assert call(capsys, train.main, "--preset", a / "config.toml", "--run-dir", b).status == 0
    assert_same(torch.load(a / "last.pt", weights_only=True), torch.load(b / "last.pt", weights_only=True))


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["points", "spiral"])
def test_synthetic_data_train(dataset, tmp_path, capsys):
    options = {"preset": "points", "dataset": dataset, "max_steps": 20, "run_dir": tmp_path / "run"}
    done = call(capsys, train.main, *flags(options))
    assert done.status == 0
    assert lines(done)[0].startswith(dataset)


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
def test_a_run_without_a_directory_of_its_own_gets_a_new_one_under_runs(npz, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = small(npz, tmp_path)
    options = options[: options.index("--run-dir")]
    for _ in range(2):
        assert call(capsys, train.main, *options).status == 0
    assert files(tmp_path / "runs") == {"3b1b-manual-seed0", "3b1b-manual-seed0-2"}


@pytest.mark.slow
def test_the_last_examples_are_held_out(npz, tmp_path, capsys):
    done = call(capsys, train.main, *small(npz, tmp_path / "run", validation=50))
    assert done.status == 0
    assert "50 training examples are held out" in lines(done)[0]
    assert max(running.values(tmp_path / "run", "loss/test")) == 10  # two epochs of 150 examples by 30


def test_print_config_trains_nothing(tmp_path, capsys):
    done = call(capsys, train.main, "--print-config", "--run-dir", tmp_path / "run", "--lr", "0.25")
    assert done.status == 0
    assert tomllib.loads(done.out)["lr"] == 0.25
    assert files(tmp_path) == set()


def test_help_names_every_option_of_the_issue(capsys):
    done = call(capsys, train.main, "--help")
    assert done.status == 0
    options = """
        impl preset dataset data-dir validation hidden activation loss optimizer lr schedule momentum l2 batch-size
        epochs max-steps init seed dtype device threads run-dir resume check-every eval-every log-every histogram-every
        print-config betas eps lr-epochs lr-factor warmup patience l1 dropout max-norm clip-norm clip-value expand
    """
    for option in options.split():
        assert re.search(rf"--{option}\b", done.out), option


@pytest.mark.long
def test_a_progress_bar_on_a_terminal(npz, tmp_path):
    ours, theirs = pty.openpty()
    command = [sys.executable, str(ROOT / "train.py"), *small(npz, tmp_path / "run")]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80"}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, env=environment)
    os.close(theirs)
    shown = b""
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # how Linux says that the other side is closed
            break
        if not chunk:
            break
        shown += chunk
    os.close(ours)
    assert process.wait() == 0
    text = shown.decode()
    assert "━" in text.split("epoch 2/2")[-1], "a bar stands beside the epoch"
    assert re.search(r"epoch 2/2  test accuracy [\d.]+%  [\d,]+ examples/s", text)
    assert "loss/test" not in text, "the plain line per epoch is for elsewhere"
    assert f"test accuracy {running.values(tmp_path / 'run', 'accuracy/test')[14]:.2%} (best" in text
