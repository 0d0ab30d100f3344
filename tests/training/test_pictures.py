"""Runs of convolutional networks: what is made of their options, on which data they train, and what is refused."""

import numpy as np
import pytest
import torch

import explain
import predict
import train
import verify
from manual_backprop.models.cnn import CNN
from manual_backprop.models.lenet5 import LeNet5
from tests.support.running import call, files, flags, learner_of, one_sentence, resolved, train_loop, write_pictures
from training import checkpoint
from training.data import load
from training.data.augmentation import make_augment
from training.data.noise import dropout_noise
from training.families.configure import configure
from training.families.networks import make_model

Capsys = pytest.CaptureFixture[str]
LOSS = "softmax-cross-entropy"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("data") / "pictures.npz")


def config(data, **changes):
    settings = {"model": "cnn", "channels": (3, 4), "activation": ("relu",), "loss": LOSS, "lr": 0.05}
    settings |= {"momentum": 0.9, "l2": 1e-3, "batch_size": 30, "epochs": 2, "log_every": 4, "histogram_every": 5}
    settings |= {"dropout": 0.2, "shift": 1, "rotate": 10.0}
    return resolved(configure(**(settings | changes)), data)


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


# The scripts


@pytest.fixture(scope="module")
def run_dir(pictures, tmp_path_factory):
    data, path = load("npz", pictures), tmp_path_factory.mktemp("run")
    train_loop(config(data, data_dir=str(pictures), max_steps=2, histogram_every=0), data, path)
    return path


def test_a_run_cannot_be_explained(run_dir, capsys):
    done = call(capsys, explain.main, "--checkpoint", run_dir, "--out", run_dir / "page.html")
    assert done.status == 2
    assert "only perceptrons" in one_sentence(done.err)


def test_data_of_another_shape_are_refused(run_dir, tmp_path, capsys):
    other = write_pictures(tmp_path / "other.npz", (6, 7))
    for main in (predict.main, verify.main):
        where = ["--dataset", "npz"] if main is predict.main else []
        done = call(capsys, main, "--checkpoint", run_dir, *where, "--data-dir", other)
        assert done.status == 2
        assert "npz has shape 6, 7, but this network was trained on npz with shape 7, 6" in one_sentence(done.err)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("stage1.norm.running_var", None),
        ("stage1.block1.conv1.weight", torch.zeros(3, 3, 1, 1)),
        ("stage3.conv.weight", torch.zeros(1)),
    ],
    ids=["missing", "another shape", "unknown"],
)
def test_a_checkpoint_of_another_network_is_refused(name, tensor, run_dir, tmp_path, capsys):
    saved = checkpoint.load(run_dir)
    saved["model"].pop(name, None)
    if tensor is not None:
        saved["model"][name] = tensor
    torch.save(saved, tmp_path / "spoilt.pt")
    done = call(capsys, predict.main, "--checkpoint", tmp_path / "spoilt.pt", "--dataset", "npz")
    assert done.status == 2
    assert name in one_sentence(done.err)


@pytest.mark.long
def test_the_preset_trains(tmp_path, capsys):
    options = {"model": "cnn", "dataset": "sample", "max_steps": 2, "examples": 100, "batch_size": 20, "impl": "both"}
    done = call(capsys, train.main, *flags(options | {"run_dir": tmp_path / "run"}))
    assert (done.status, done.err) == (0, "")
    assert 'model = "cnn"' in (tmp_path / "run" / "config.toml").read_text()


@pytest.mark.slow
def test_pictures_in_color_train(tmp_path, capsys):
    npz = write_pictures(tmp_path / "color.npz", (3, 8, 6))
    options = {"model": "cnn", "dataset": "npz", "data_dir": npz, "channels": (4,), "max_steps": 3, "impl": "both"}
    done = call(capsys, train.main, *flags(options | {"shift": 0, "rotate": 0, "run_dir": tmp_path / "run"}))
    assert (done.status, done.err) == (0, "")
    assert checkpoint.load(tmp_path / "run")["model"]["stage1.conv.weight"].shape == (4, 3, 3, 3)


def write_tiny(folder, side):
    """25 pictures, of which 20 are for training."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(25, side, side)).astype(np.float32)
    np.savez(folder / "tiny.npz", x=x, y=np.arange(25) % 3)
    return folder / "tiny.npz"


NO_PICTURES = "reads pictures, height×width or channels×height×width, and an example of points is 2: give --model mlp"
REFUSED = {
    "one value per channel": (
        2,
        {"model": "cnn", "channels": (3,), "batch_size": 1},
        "--batch-size is 1, which leaves every mini-batch 1 of 20 examples, and the maps of the last stage are 1×1",
    ),
    "one value in the last batch": (
        7,
        {"model": "cnn", "channels": (3, 2), "batch_size": 19},
        "--batch-size is 19, which leaves an epoch's last mini-batch 1 of 20 examples",
    ),
    "one example": (
        3,
        {"model": "cnn", "channels": (3,), "examples": 1},
        "which leaves an epoch's last mini-batch 1 of 1",
    ),
    "too many stages": (7, {"model": "cnn"}, "3 stages halve a picture 3 times, and 7×7 pixels allow 2: give channels"),
    "LeNet-5 of 20×20": (20, {"model": "lenet5"}, "LeNet-5 reads pictures of 28×28 or 32×32 pixels, not of 20×20"),
    "channels of LeNet-5": (28, {"model": "lenet5", "channels": (3,)}, "--channels goes with --model cnn, not with"),
    "no channels": (8, {"model": "cnn", "channels": ()}, "--channels is empty, but it must be"),
    "blocks below 0": (8, {"model": "cnn", "channels": (3,), "blocks": -1}, "--blocks is -1, but it must be"),
    "unknown activation": (8, {"model": "cnn", "activation": ("swish",)}, "invalid choice 'swish'"),
    "points": (8, {"model": "cnn", "dataset": "points"}, f"--model cnn {NO_PICTURES}"),
    "points for LeNet-5": (8, {"model": "lenet5", "dataset": "points"}, f"--model lenet5 {NO_PICTURES}"),
    "unknown model": (8, {"model": "resnet"}, "invalid choice 'resnet'"),
}


@pytest.mark.sweep(6)
@pytest.mark.parametrize(("side", "options", "named"), REFUSED.values(), ids=REFUSED)
def test_a_wrong_command_line(side, options, named, tmp_path, capsys):
    npz = write_tiny(tmp_path, side)
    options = {"dataset": "npz", "data_dir": npz, "run_dir": tmp_path / "run"} | options
    done = call(capsys, train.main, *flags(options))
    assert done.status == 2
    assert named in one_sentence(done.err)
    assert files(tmp_path) == {"tiny.npz"}


@pytest.mark.parametrize(
    ("side", "channels", "batch_size"), [(2, (3,), 2), (2, (3,), 9), (3, (3,), 20), (5, (2,), 19), (4, (2,), 1)]
)
def test_the_least_that_batch_norm_trains_on(side, channels, batch_size, tmp_path):
    """Two examples of a pixel each, or one of several pixels."""
    data = load("npz", write_tiny(tmp_path, side))
    settings = config(data, channels=channels, batch_size=batch_size, epochs=1, histogram_every=0)
    _, outcome = train_loop(settings, data, tmp_path / "run")
    assert outcome.finished
