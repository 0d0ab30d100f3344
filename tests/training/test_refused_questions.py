"""What predict.py, verify.py and explain.py refuse: wrong questions, and runs that are spoiled."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import explain
import predict
import train
import verify
from explanation.numbers import Network
from tests.support.refusals import assert_refused, contents, refused, small_run
from tests.support.running import call, files, flags, write_npz
from training import checkpoint
from training.prediction import load_trained

Capsys = pytest.CaptureFixture[str]
Spoil = Callable[[Path], object]


@pytest.fixture(scope="module")
def a_run(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def run_dir(a_run, tmp_path):
    """A copy of that run, to be spoiled."""
    return Path(shutil.copytree(a_run, tmp_path / "copy"))


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A run on pictures."""
    path = tmp_path_factory.mktemp("run") / "digits"
    assert train.main(list(flags({"dataset": "sample", "hidden": (70,), "max_steps": 1, "run_dir": path}))) == 0
    return path


@pytest.fixture
def folder(tmp_path):
    """Files that are no pictures, pictures that show nothing or something, and data of four classes."""
    (tmp_path / "text.png").write_text("seven")
    Image.new("L", (40, 40), 200).save(tmp_path / "blank.png")
    ImageOps.expand(Image.new("L", (6, 18), 255), 10).save(tmp_path / "digit.png")
    Image.effect_noise((40, 40), 50).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:300])
    write_npz(tmp_path / "four.npz", classes=4)
    return tmp_path


# Checkpoints


def change(change):
    def spoil(run_dir):
        saved = torch.load(run_dir / "last.pt", weights_only=True)
        change(saved)
        torch.save(saved, run_dir / "last.pt")

    return spoil


def cut_off(run_dir):
    path = run_dir / "last.pt"
    path.write_bytes(path.read_bytes()[:-1000])


SPOILED = {
    "cut off": (cut_off, "not a whole checkpoint"),
    "text": (lambda run: (run / "last.pt").write_text("epoch 3: 95%"), "not a whole checkpoint"),
    "empty": (lambda run: (run / "last.pt").write_bytes(b""), "not a whole checkpoint"),
    "missing": (lambda run: (run / "last.pt").unlink(), "holds no checkpoint"),
    "only weights": (
        lambda run: torch.save({"layer1.weight": torch.zeros(2, 2)}, run / "last.pt"),
        "not a checkpoint of this project",
    ),
    "another format": (change(lambda saved: saved.update(format=99)), "format version 99"),
    "without model": (change(lambda saved: saved.pop("model")), "not a checkpoint of this project"),
    "without data": (change(lambda saved: saved.pop("data")), "not a checkpoint of this project"),
    "without config": (change(lambda saved: saved.pop("config")), "not a checkpoint of this project"),
    "another shape": (
        change(lambda saved: saved["model"].update({"layer1.weight": torch.zeros(9, 5)})),
        "layer1.weight is (9, 5)",
    ),
    "a layer more": (
        change(lambda saved: saved["model"].update({"layer3.weight": torch.zeros(3, 3)})),
        "layer3.weight",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("spoil", "named"), SPOILED.values(), ids=SPOILED)
def test_spoiled_checkpoints(spoil, named, run_dir, capsys):
    spoil(run_dir)
    before = contents(run_dir)
    for done in (
        call(capsys, train.main, "--resume", run_dir, "--epochs", "101"),
        call(capsys, predict.main, "--checkpoint", run_dir, "--dataset", "sample"),
        call(capsys, verify.main, "--checkpoint", run_dir),
        call(capsys, explain.main, "--checkpoint", run_dir, "--out", run_dir / "page.html"),
    ):
        assert_refused(done, named)
    assert contents(run_dir) == before


class Intruder:
    """Runs code when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_a_checkpoint_that_would_run_code(run_dir, tmp_path):
    saved = checkpoint.load(run_dir)
    torch.save({**saved, "config": Intruder(tmp_path / "intruded")}, run_dir / "last.pt")
    with refused("not a whole checkpoint"):
        checkpoint.load(run_dir)
    assert not (tmp_path / "intruded").exists()


def test_a_checkpoint_cut_off_anywhere(run_dir):
    whole = (run_dir / "last.pt").read_bytes()
    lengths = {*range(0, len(whole), len(whole) // 60), *range(len(whole) - 150, len(whole))}
    for length in sorted(lengths):
        (run_dir / "last.pt").write_bytes(whole[:length])
        with refused("not a whole checkpoint"):
            checkpoint.load(run_dir)


def test_any_bytes_but_a_checkpoint(tmp_path):
    generator = np.random.default_rng(0)
    for length in range(1, 300):
        (tmp_path / "x.pt").write_bytes(generator.integers(32, 127, length, dtype=np.uint8).tobytes())
        with refused("not a"):
            checkpoint.load(tmp_path / "x.pt")


# Questions


PREDICT = {
    "neither pictures nor data": ([], "either pictures or --dataset"),
    "both": (["x.png", "--dataset", "npz"], "either pictures or --dataset"),
    "validation of pictures": (["x.png", "--validation", "3"], "go with --dataset"),
    "unknown dataset": (["--dataset", "mnits"], "did you mean 'mnist'"),
    "data of another shape": (["--dataset", "sample"], "sample has shape 28, 28"),
    "data with other classes": (["--dataset", "npz", "--data-dir", "{tmp}/four.npz"], "classes 0, 1, 2, 3"),
    "pictures for a network of arrays": (["x.png"], "reads no pictures"),
}


@pytest.mark.parametrize(("arguments", "named"), PREDICT.values(), ids=PREDICT)
def test_a_wrong_question(arguments, named, a_run, folder, capsys):
    asked = [argument.format(tmp=folder) for argument in arguments]
    assert_refused(call(capsys, predict.main, "--checkpoint", a_run, *asked), named)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["text.png", "blank.png", "cut.png", "nothing.png"])
def test_pictures_that_are_none(name, digits, folder, capsys):
    done = call(capsys, predict.main, "--checkpoint", digits, folder / name)
    assert_refused(done, name)
    assert done.out == ""


@pytest.mark.parametrize("arguments", [["--seeds", "0"], ["--seed", "-1"], ["--model", "gpt"], ["--dtype", "int8"]])
def test_wrong_orders_to_verify(arguments, capsys):
    assert_refused(call(capsys, verify.main, *arguments), arguments[0])


EXPLAIN = {
    "both an index and a picture": (["--index", "7", "--image", "x.png"], "either --index or --image"),
    "a label without a picture": (["--label", "3"], "--label goes with --image"),
    "a mini-batch of one": (["--batch-size", "1"], "--batch-size is 1"),
    "an index beyond the training set": (["--index", "10000"], "from 0 to 9,999"),
    "a negative index": (["--index", "-1"], "--index is -1"),
    "no whole number": (["--index", "seven"], "seven"),
    "a class that is none": (["--image", "{tmp}/digit.png", "--label", "ten"], "one of 0, 1, 2"),
    "no picture there": (["--image", "{tmp}/nothing.png"], "nothing.png does not exist"),
    "a picture that is none": (["--image", "{tmp}/text.png"], "text.png cannot be read as a picture"),
    "a blank picture": (["--image", "{tmp}/blank.png"], "blank.png shows nothing"),
    "a mini-batch without end": (["--batch-size", "1001"], "from 2 to 1,000"),
    "too many gradients": (["--batch-size", "1000"], "smaller --batch-size"),
    "no such directory for the page": (["--out", "{tmp}/none/page.html"], "give another --out"),
    "a directory for a page": (["--out", "{tmp}"], "give another --out"),
    "no checkpoint there": (["--checkpoint", "{tmp}"], "holds no checkpoint"),
    "a checkpoint that is none": (["--checkpoint", "{tmp}/text.png"], "is not a whole checkpoint"),
    "a picture for a network of arrays": (["--checkpoint", "{arrays}", "--image", "x.png"], "reads no pictures"),
    "other classes": (["--checkpoint", "{arrays}", "--data-dir", "{tmp}/four.npz"], "classes 0, 1, 2, 3"),
    "no data there": (["--checkpoint", "{arrays}", "--data-dir", "{tmp}/none.npz"], "none.npz"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "named"), EXPLAIN.values(), ids=EXPLAIN)
def test_what_cannot_be_explained(arguments, named, digits, a_run, folder, capsys):
    before, run_before = files(folder), contents(digits)
    asked = [argument.format(tmp=folder, arrays=a_run) for argument in arguments]
    done = call(capsys, explain.main, "--checkpoint", digits, "--out", folder / "page.html", "--tensorboard", *asked)
    assert_refused(done, named)
    assert done.out == ""
    assert files(folder) == before
    assert contents(digits) == run_before


def test_a_network_that_diverged_is_not_explained(run_dir, tmp_path, capsys):
    change(lambda saved: saved["model"]["layer2.bias"].fill_(torch.nan))(run_dir)
    done = call(capsys, explain.main, "--checkpoint", run_dir, "--out", tmp_path / "page.html")
    assert_refused(done, "not finite")
    assert not (tmp_path / "page.html").exists()


def test_only_perceptrons_are_explained(a_run):
    trained = load_trained(a_run)
    trained.learner.model = object()  # type: ignore[assignment]
    with refused("only perceptrons"):
        Network(trained)
