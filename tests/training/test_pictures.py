"""Runs of convolutional networks: what is made of their options, on which data they train, and what is refused."""

import numpy as np
import pytest
import torch

import explain
import train
import verify
from manual_backprop.models.cnn import CNN
from manual_backprop.models.lenet5 import LeNet5
from tests.support.refusals import assert_refused
from tests.support.running import call, files, flags, learner_of, resolved, train_loop, write_pictures
from training import checkpoint
from training.data import load
from training.data.augmentation import make_augment
from training.data.noise import dropout_noise
from training.families.configure import configure
from training.families.networks import make_model

LOSS = "softmax-cross-entropy"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("data") / "pictures.npz")


def config(data, **changes):
    settings = {"model": "cnn", "channels": (3, 4), "activation": ("relu",), "loss": LOSS, "lr": 0.05}
    settings |= {"momentum": 0.9, "l2": 1e-3, "batch_size": 30, "epochs": 2, "log_every": 4, "histogram_every": 5}
    return resolved(configure(**(settings | {"dropout": 0.2, "shift": 1, "rotate": 10.0} | changes)), data)


@pytest.mark.parametrize("impl", ["manual", "reference"])
def test_the_learner_is_what_the_configuration_asks_for(impl, pictures):
    """To the last option: the moves of the pictures and the masks are those of the seed, alike on both sides."""
    data = load("npz", pictures)
    settings = config(data, impl=impl, blocks=2, activation=("silu",), seed=5, shift=2, rotate=20.0)
    model = make_model(settings, data)
    assert model == CNN((1, 7, 6), 3, (3, 4), 2, "silu", dropout=0.2)
    learner = learner_of(settings, data)
    assert list(learner.parameters) == list(model.shapes)
    x, y = data.train.batch(torch.arange(30), torch.float32)
    shown, labels = learner.batch(torch.arange(30))
    assert torch.equal(shown, make_augment((7, 6), 2, 20.0, seed=5)(0, x))
    assert torch.equal(labels, y)
    asked = 6, learner.device, torch.float32
    for name in ("dropout", "another"):
        mask = learner.noise(*asked)(name, (30, 4), 0.8)
        assert torch.equal(mask, dropout_noise(5)(*asked)(name, (30, 4), 0.8))
    if impl == "reference":
        assert learner.module.dropout.p == 0.2


def test_lenet_is_what_the_configuration_asks_for(sample):
    settings = resolved(configure(model="lenet5", activation=("gelu",), loss=LOSS), sample)
    assert make_model(settings, sample) == LeNet5((1, 28, 28), 10, "gelu")


def test_it_cannot_be_explained_and_is_not_verified_on_pictures_of_another_shape(pictures, tmp_path, capsys):
    data, run_dir, other = load("npz", pictures), tmp_path / "run", write_pictures(tmp_path / "other.npz", (6, 7))
    train_loop(config(data, data_dir=str(pictures), max_steps=2, histogram_every=0), data, run_dir)
    asked = ("--checkpoint", run_dir, "--out", tmp_path / "page.html")
    assert_refused(call(capsys, explain.main, *asked), "only perceptrons")
    said = "npz has shape 6, 7, but this network was trained on npz with shape 7, 6"
    assert_refused(call(capsys, verify.main, "--checkpoint", run_dir, "--data-dir", other), said)


@pytest.mark.slow
def test_pictures_in_color_train(tmp_path, capsys):
    npz = write_pictures(tmp_path / "color.npz", (3, 8, 6))
    options = {"model": "cnn", "dataset": "npz", "data_dir": npz, "channels": (4,), "max_steps": 3, "impl": "both"}
    done = call(capsys, train.main, *flags(options | {"shift": 0, "rotate": 0, "run_dir": tmp_path / "run"}))
    assert (done.status, done.err) == (0, "")
    assert checkpoint.load(tmp_path / "run")["model"]["stage1.conv.weight"].shape == (4, 3, 3, 3)


def write_tiny(folder, side):
    """25 pictures, of which 20 are for training."""
    x = np.random.default_rng(0).normal(size=(25, side, side)).astype(np.float32)
    np.savez(folder / "tiny.npz", x=x, y=np.arange(25) % 3)
    return folder / "tiny.npz"


NO_PICTURES = "reads pictures, height×width or channels×height×width, and an example of points is 2: give --model mlp"
ONE = "--batch-size is 1, which leaves every mini-batch 1 of 22 examples, and the maps of the last stage are 1×1"
LAST = "--batch-size is 21, which leaves an epoch's last mini-batch 1 of 22 examples"
REFUSED = {
    "one value per channel": (2, "--model cnn --channels 3 --batch-size 1", ONE),
    "one value in the last batch": (7, "--model cnn --channels 3 2 --batch-size 21", LAST),
    "one example": (3, "--model cnn --channels 3 --examples 1", "which leaves an epoch's last mini-batch 1 of 1"),
    "stages": (7, "--model cnn", "3 stages halve a picture 3 times, and 7×7 pixels allow 2: give channels"),
    "20×20": (20, "--model lenet5", "LeNet-5 reads pictures of 28×28 or 32×32 pixels, not of 20×20"),
    "points": (8, "--model cnn --dataset points", f"--model cnn {NO_PICTURES}"),
    "points for LeNet-5": (8, "--model lenet5 --dataset points", f"--model lenet5 {NO_PICTURES}"),
}


@pytest.mark.sweep(6)
@pytest.mark.parametrize(("side", "line", "named"), REFUSED.values(), ids=REFUSED)
def test_pictures_that_do_not_fit_the_network_are_refused(side, line, named, tmp_path, capsys):
    options = {"dataset": "npz", "data_dir": write_tiny(tmp_path, side), "run_dir": tmp_path / "run"}
    assert_refused(call(capsys, train.main, *flags(options), *line.split()), named)
    assert files(tmp_path) == {"tiny.npz"}


@pytest.mark.parametrize(
    ("side", "channels", "batch_size"), [(2, (3,), 2), (2, (3,), 9), (3, (3,), 20), (5, (2,), 19), (4, (2,), 1)]
)
def test_the_least_that_batch_norm_trains_on(side, channels, batch_size, tmp_path):
    """Two examples of a pixel each, or one of several pixels."""
    data = load("npz", write_tiny(tmp_path, side))
    settings = config(data, channels=channels, batch_size=batch_size, epochs=1, histogram_every=0)
    assert train_loop(settings, data, tmp_path / "run")[1].finished
