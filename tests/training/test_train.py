"""train.py and predict.py as a user runs them. What they refuse is in test_refusals.py."""

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

import predict
import train
from tests.support import running
from tests.support.refusals import assert_refused
from tests.support.running import ROOT, assert_same, call, files, flags, values
from training.data.mnist import has_mnist
from training.families.configure import configure
from training.prediction import load_trained

RUN_FILES = {"config.toml", "environment.json", "metrics.jsonl", "last.pt", "best.pt", "first.pt", "curves.png"}


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

    accuracy = values(run_dir, "accuracy/test")[25]
    for said in (f"test accuracy {accuracy:.2%}", f"tensorboard --logdir {run_dir.parent}", str(run_dir)):
        assert said in last

    assert {name for name in files(run_dir) if not name.startswith("events.")} == RUN_FILES
    with Image.open(run_dir / "curves.png") as picture:
        assert picture.width > 300
    environment = json.loads((run_dir / "environment.json").read_text())
    assert environment["torch"] == torch.__version__
    assert {"python", "device", "threads", "git_commit", "command"} <= environment.keys()


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
    for name in ("points-spiral-max_steps20-manual-seed0", "points-spiral-max_steps20-manual-seed0-2"):
        done = call(capsys, train.main, *flags({"preset": "points", "dataset": "spiral", "max_steps": 20}))
        assert (done.status, done.out.startswith("spiral"), name in files(tmp_path / "runs")) == (0, True, True)


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
    assert f"test accuracy {values(tmp_path / 'run', 'accuracy/test')[14]:.2%} (best" in text


# predict.py


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A network that has learned some: about 80% of the sample's test digits."""
    path = tmp_path_factory.mktemp("run") / "digits"
    options = {"dataset": "sample", "epochs": 3, "batch_size": 100, "lr": 10.0, "run_dir": path}
    assert train.main(list(flags(options))) == 0
    return path


@pytest.fixture(scope="module")
def pictures(sample, tmp_path_factory):
    """The first of each of the digits 0, 1 and 2 in the test set: big and dark on light, as it is, and in color."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / "0.png", folder / "1.png", folder / "2.jpg"]
    pixels = [sample.test.x[sample.test.y == digit][0].view(28, 28).numpy() for digit in range(3)]
    Image.fromarray(255 - pixels[0]).resize((280, 300)).save(paths[0])
    Image.fromarray(pixels[1]).save(paths[1])
    two = Image.fromarray(pixels[2])
    Image.merge("RGB", [two.point(lambda v: v // 2), two, two]).resize((90, 90)).save(paths[2])
    return paths


def answer(capsys, *asked):
    done = call(capsys, predict.main, "--json", "--checkpoint", *asked)
    assert (done.status, done.err) == (0, "")
    return json.loads(done.out)


@pytest.mark.slow
def test_pictures(learned, pictures, sample, capsys):
    done = call(capsys, predict.main, "--checkpoint", learned, *pictures)
    assert (done.status, done.err) == (0, "")
    predictions = answer(capsys, learned, *pictures)["predictions"]
    for digit, (path, line, p) in enumerate(zip(pictures, done.out.splitlines(), predictions, strict=True)):
        assert line.startswith(f"{path}: {digit} (activation {digit} 0.")
        assert line.count(",") == 2, "three classes on the line"
        assert (p["image"], p["class"]) == (str(path), str(digit))
        activations = list(p["activation"].values())
        assert sorted(p["activation"]) == list("0123456789")
        assert activations == sorted(activations, reverse=True)
        assert p["class"] == next(iter(p["activation"]))
    outputs = load_trained(learned).outputs(sample.test.x[sample.test.y == 1][:1])[0].tolist()
    own = [predictions[1]["activation"][str(digit)] for digit in range(10)]
    assert own == pytest.approx(outputs, abs=0.2), "a PNG file and MNIST's preparation change little"


def test_one_bad_picture_among_others_and_a_doubtful_one(learned, pictures, tmp_path, capsys):
    """The others get their answers, and --show writes what the network saw of them."""
    blank, two = tmp_path / "blank.png", tmp_path / "two.png"
    Image.new("L", (60, 60), 255).save(blank)
    page = Image.new("L", (560, 300), 255)
    for left in (0, 280):
        page.paste(Image.open(pictures[0]), (left, 0))
    page.save(two)
    done = call(capsys, predict.main, "--checkpoint", learned, "--show", tmp_path / "seen", pictures[1], blank, two)
    assert_refused(done, f"predict.py: {blank} shows nothing")
    plain, doubtful = done.out.splitlines()
    assert plain.startswith(f"{pictures[1]}: 1 (activation 1 0.")
    assert doubtful.startswith(f"{two}: not sure, perhaps 0 (activation 0 0.")
    assert "): this looks like two digits" in doubtful
    assert files(tmp_path / "seen") == {"1-1.png", "3-two.png"}
    with Image.open(tmp_path / "seen" / "3-two.png") as seen:
        assert seen.size == (28, 28)


@pytest.mark.parametrize("which", ["last.pt", "best.pt"])
def test_a_data_set(which, learned, sample, capsys):
    """The rows of the confusion matrix are the true classes."""
    result = answer(capsys, learned / which, "--dataset", "sample")
    accuracy, loss = (values(learned, tag) for tag in ("accuracy/test", "loss/test"))
    step = torch.load(learned / which, weights_only=True)["steps"]
    assert result["accuracy"] == accuracy[step]
    assert result["loss"] == pytest.approx(loss[step], rel=1e-6)
    assert result["examples"] == 2000
    confusion = torch.tensor(result["confusion"])
    assert confusion.diagonal().sum().item() / 2000 == pytest.approx(result["accuracy"])
    answers = load_trained(learned / which).outputs(sample.test.x).argmax(dim=1)
    assert torch.equal(confusion.sum(dim=1), sample.test.y.bincount(minlength=10))
    assert torch.equal(confusion.sum(dim=0), answers.bincount(minlength=10))
    assert confusion[4, 9] == ((sample.test.y == 4) & (answers == 9)).sum()


def test_a_data_set_as_a_table_and_held_out_examples(learned, capsys):
    lines = call(capsys, predict.main, "--checkpoint", learned, "--dataset", "sample").out.splitlines()
    assert "bundled sample" in lines[0]
    assert lines[-1].startswith(f"2,000 examples: loss {values(learned, 'loss/test')[300]:.4f}, accuracy ")
    rows = [line.split() for line in lines if len(line.split()) == 11]
    assert [row[0] for row in rows] == list("0123456789")
    result = answer(capsys, learned, "--dataset", "sample", "--validation", "500")
    assert result["examples"] == 500
    assert "held out" in result["data"]


@pytest.mark.long
@pytest.mark.parametrize("loss", ["softmax-cross-entropy", "sigmoid-cross-entropy"])
def test_a_network_of_logits_gives_probabilities(loss, pictures, tmp_path, capsys):
    run_dir = tmp_path / "run"
    options = {"dataset": "sample", "loss": loss, "lr": 0.5, "epochs": 2, "dtype": "float64", "run_dir": run_dir}
    assert call(capsys, train.main, *flags(options)).status == 0
    assert "1 (probability 1 " in call(capsys, predict.main, "--checkpoint", run_dir, pictures[1]).out
    probabilities = answer(capsys, run_dir, pictures[1])["predictions"][0]["probability"].values()
    assert all(0 <= p <= 1 for p in probabilities)
    assert loss == "sigmoid-cross-entropy" or sum(probabilities) == pytest.approx(1)


@pytest.mark.slow
def test_a_network_trained_otherwise_on_arrays(npz, tmp_path, capsys):
    options = {"impl": "reference", "dataset": "npz", "data_dir": npz, "hidden": (4,), "max_steps": 10}
    options |= {"dtype": "bfloat16", "loss": "softmax-cross-entropy", "lr": 0.1, "run_dir": tmp_path / "run"}
    assert call(capsys, train.main, *flags(options)).status == 0
    result = answer(capsys, tmp_path / "run", "--dataset", "npz", "--data-dir", npz)
    assert result["accuracy"] == values(tmp_path / "run", "accuracy/test")[10]
