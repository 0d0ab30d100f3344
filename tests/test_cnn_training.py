"""Convolutional networks in training: in lock step with their twins, interrupted and resumed, and by the scripts."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cnn_problems import rewritten
from problems import checked_learner, manual_learner, random_batches, rates, relative_difference
from running import assert_same, call, files, flags, metrics, one_sentence, train_loop, write_pictures
from torch import Tensor

import explain
import predict
import train
import verify
from manual_backprop.layers import batch_norm, max_pool2d
from manual_backprop.models.cnn import CNN, LeNet5
from training import checkpoint
from training.augmentation import make_augment
from training.config import Config
from training.data import Dataset, Split, load
from training.learners.checked import MAX_ERROR, CheckedLearner, GradientMismatch

Capsys = pytest.CaptureFixture[str]
LOSS = "softmax-cross-entropy"
SMALL = CNN((1, 10, 10), 10, (3, 4), 1)
METHODS: dict[str, tuple[float, dict[str, Any]]] = {
    "momentum": (0.05, {"optimizer": "sgd", "momentum": 0.9}),
    "adamw and l2": (3e-3, {"optimizer": "adamw", "l2": 0.1}),
    "muon": (3e-3, {"optimizer": "muon"}),
    "lion": (3e-4, {"optimizer": "lion"}),
}
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


@pytest.fixture(scope="module")
def digits(sample: Dataset) -> Split:
    """Every third pixel of every third row: 10×10, in bytes, with edges that are always dark."""
    x = sample.train.x[:400].view(-1, 28, 28)[:, ::3, ::3]
    assert x.dtype == torch.uint8
    return Split(x.flatten(1), sample.train.y[:400])


def small(digits: Split, dtype: torch.dtype, model: CNN = SMALL, **settings: Any) -> CheckedLearner:
    return checked_learner(manual_learner(model, LOSS, digits, dtype=dtype, init="he", **settings), LOSS)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("lr", "method"), METHODS.values(), ids=METHODS)
def test_no_false_alarm_whatever_the_optimizer(
    digits: Split, lr: float, method: dict[str, Any], dtype: torch.dtype
) -> None:
    learner = small(digits, dtype, **method)
    start = learner.state_dict()["model"]
    losses = learner.advance(random_batches(20, 13, 400), rates(20, lr))
    assert losses.isfinite().all()
    assert learner.metrics[MAX_ERROR] > 0
    if dtype == torch.float64:
        assert learner.metrics[MAX_ERROR] < 1e-12
    end = learner.state_dict()["model"]
    assert all(not torch.equal(start[name], end[name]) for name in start)


VARIANTS = {
    "dropout": (replace(SMALL, dropout=0.3), {}),
    "no blocks": (replace(SMALL, blocks=0), {}),
    "leaky relu": (replace(SMALL, activation="leaky_relu"), {}),
    "softplus": (replace(SMALL, activation="softplus"), {}),
    "three stages to one pixel": (replace(SMALL, channels=(3, 4, 5)), {}),
    "limits": (SMALL, {"rules": {"l1": 1e-3, "clip_norm": 0.5, "max_norm": 1.0}}),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("model", "settings"), VARIANTS.values(), ids=VARIANTS)
def test_no_false_alarm_whatever_the_network(
    digits: Split, model: CNN, settings: dict[str, Any], dtype: torch.dtype
) -> None:
    augment = make_augment((10, 10), 1, 15.0, seed=2)
    learner = small(digits, dtype, model, momentum=0.9, augment=augment, **settings)
    assert learner.advance(random_batches(20, 13, 400), rates(20, 0.05)).isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ["scaled_tanh", "relu"])
def test_no_false_alarm_over_lenet(sample: Dataset, activation: str, dtype: torch.dtype) -> None:
    manual = manual_learner(
        LeNet5((1, 28, 28), 10, activation), LOSS, sample.train, dtype=dtype, init="xavier", momentum=0.9
    )
    learner = checked_learner(manual, LOSS)
    assert learner.advance(random_batches(20, 5, 400), rates(20, 0.02)).isfinite().all()


def test_what_is_checked_is_what_is_trained(digits: Split) -> None:
    alone = manual_learner(SMALL, LOSS, digits, dtype=torch.float32, momentum=0.9)
    both = small(digits, torch.float32, momentum=0.9)
    both.load_state_dict(alone.state_dict())
    batches = random_batches(6, 13, 400)
    assert torch.equal(alone.advance(batches, rates(6, 0.05)), both.advance(batches, rates(6, 0.05)))
    assert_same(alone.state_dict(), both.state_dict())


# Mistakes


def flipped(right: Callable[..., Tensor], dy: Tensor, cache: max_pool2d.Cache) -> Tensor:
    return right(dy, cache).flip(-1)


def swapped(right: Callable[..., Any], dy: Tensor, cache: batch_norm.Cache) -> tuple[Tensor, ...]:
    dx, dgamma, dbeta = right(dy, cache)
    return dx, dbeta, dgamma


def without_shift(right: Callable[..., Any], dy: Tensor, cache: batch_norm.Cache) -> tuple[Tensor, ...]:
    """BN3 without its term −x̂ dγ/n."""
    dx, dgamma, dbeta = right(dy, cache)
    xhat, sigma, gamma = cache
    n = dy[:, 0].numel()
    return dx + (gamma / sigma * dgamma / n).view(-1, 1, 1) * xhat, dgamma, dbeta


def with_n(right: Callable[..., Any], x: Tensor, *arguments: Tensor) -> tuple[Any, ...]:
    """The running variance of n instead of n − 1."""
    y, cache, mean, var = right(x, *arguments)
    n = x[:, 0].numel()
    old = 0.9 * arguments[3]
    return y, cache, mean, old + (var - old) * (n - 1) / n


def twice_as_fast(right: Callable[..., Any], x: Tensor, *arguments: Tensor) -> tuple[Any, ...]:
    return right(x, *arguments, 0.2)


PATCHES: dict[str, tuple[Any, str, Any, str]] = {
    "pooling sends it elsewhere": (max_pool2d, "backward", flipped, "MP1, stage 2 conv, δ: at ["),
    "γ for β": (batch_norm, "backward", swapped, "BN1, stage 2 block 1 norm 2, ∂C/∂β: at ["),
    "BN3 without a term": (batch_norm, "backward", without_shift, "BN3, stage 2 block 1 conv 2, δ: at ["),
    "variance of n": (batch_norm, "forward", with_n, "stage 1 norm, running_var: at ["),
    "momentum": (batch_norm, "forward", twice_as_fast, "stage 1 norm, running_mean: at ["),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("layer", "name", "wrong", "place"), PATCHES.values(), ids=PATCHES)
def test_a_wrong_layer_is_named_at_the_first_step(
    layer: Any,
    name: str,
    wrong: Callable[..., Any],
    place: str,
    dtype: torch.dtype,
    digits: Split,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learner = small(digits, dtype)
    before = learner.state_dict()
    monkeypatch.setattr(layer, name, partial(wrong, getattr(layer, name)))
    with pytest.raises(GradientMismatch) as caught:
        learner.advance(random_batches(3, 13, 400), rates(3, 0.05))
    assert str(caught.value).startswith(f"step 1: {place}")
    assert_same(learner.state_dict(), before)


REWRITTEN = {
    "no way around": (("da = dy + da  # RS1", "da = da.clone()"), "AC1, stage 2 norm, δ: at ["),
    "only the way around": (("da = dy + da  # RS1", "da = dy.clone()"), "AC1, stage 2 norm, δ: at ["),
    "a way around that is not forward's": (
        ("sigma.forward(x + z)", "sigma.forward(z)"),
        "stage 1 block 1 norm 2, a: at [",
    ),
    "the mean of evaluation": (
        ('norm = batch_norm.backward if caches["training"] else', "norm = batch_norm.backward_of_evaluate or"),
        "BN3, stage 2 block 1 conv 2, δ: at [",
    ),
    "no batch counted for long": (
        ("state[mean], state[var] = batch", "state[mean], _ = batch"),
        "stage 1 norm, running_var",
    ),
}


@pytest.mark.parametrize(("change", "place"), REWRITTEN.values(), ids=REWRITTEN)
def test_a_wrong_network_is_named_at_the_first_step(change: tuple[str, str], place: str, digits: Split) -> None:
    learner = small(digits, torch.float64)
    learner.manual.model = rewritten(SMALL, *change)
    with pytest.raises(GradientMismatch) as caught:
        learner.advance(random_batches(3, 13, 400), rates(3, 0.05))
    assert str(caught.value).startswith(f"step 1: {place}")


@dataclass(frozen=True)
class BreaksAt(CNN):
    """Right until backward is called for the third time."""

    calls: list[None] = field(default_factory=list, compare=False, kw_only=True)

    def backward(self, params, caches, d_output, gradients, **options):
        self.calls.append(None)
        dx = super().backward(params, caches, d_output, gradients, **options)
        if len(self.calls) == 3:
            gradients["stage1.block1.conv2.weight"] = 1.01 * gradients["stage1.block1.conv2.weight"]
        return dx


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_mistake_at_a_later_step_is_named_with_it(digits: Split, dtype: torch.dtype) -> None:
    learner = small(digits, dtype, BreaksAt(**vars(SMALL)))
    with pytest.raises(GradientMismatch, match=r"step 3: CV2, stage 1 block 1 conv 2, ∂C/∂W: at \["):
        learner.advance(random_batches(5, 13, 400), rates(5, 0.05))
    assert learner.steps == 2


# Resume


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("data") / "pictures.npz")


def config(data: Dataset, **changes: Any) -> Config:
    settings: dict[str, Any] = {"model": "cnn", "channels": (3, 4), "activation": ("relu",), "loss": LOSS, "lr": 0.05}
    settings |= {"momentum": 0.9, "l2": 1e-3, "batch_size": 30, "epochs": 2, "log_every": 4, "histogram_every": 5}
    settings |= {"dropout": 0.2, "shift": 1, "rotate": 10.0}
    return Config(**(settings | changes)).resolved(data)


def stopped_after(number: int) -> Callable[[], bool]:
    asked = iter(range(number))
    return lambda: next(asked, None) is None


@pytest.mark.parametrize("polls", [1, 4, 7, 10])
@pytest.mark.parametrize("impl", ["manual", "reference", pytest.param("both", marks=pytest.mark.slow)])
def test_a_resumed_run_is_the_uninterrupted_one(impl: str, polls: int, pictures: Path, tmp_path: Path) -> None:
    """Bit for bit, running statistics, dropout's masks and the pictures' moves included."""
    data = load("npz", pictures)
    settings = config(data, impl=impl)
    train_loop(settings, data, tmp_path / "whole")
    _, outcome = train_loop(settings, data, tmp_path / "stopped", stop=stopped_after(polls))
    assert not outcome.finished
    for path in (tmp_path / "stopped").glob("events.*"):
        path.unlink()
    _, outcome = train_loop(settings, data, tmp_path / "stopped")
    assert outcome.finished
    for name in ("last.pt", "best.pt"):
        assert_same(checkpoint.load(tmp_path / "whole" / name), checkpoint.load(tmp_path / "stopped" / name), name)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "stopped")
    saved = checkpoint.load(tmp_path / "whole")
    assert saved["model"]["stage2.block1.norm2.num_batches_tracked"].item() == saved["steps"] == 14
    assert not torch.equal(saved["model"]["stage1.norm.running_var"], torch.ones(3))


def test_manual_and_reference_runs_are_one(pictures: Path, tmp_path: Path) -> None:
    data = load("npz", pictures)
    saved = []
    for impl in ("manual", "reference", "both"):
        train_loop(config(data, impl=impl, dtype="float64"), data, tmp_path / impl)
        saved.append(checkpoint.load(tmp_path / impl)["model"])
    assert relative_difference(saved[0], saved[1]) < 1e-10
    assert_same(saved[0], saved[2])


# The scripts


@pytest.fixture(scope="module")
def run_dir(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of cnn that is stopped after ten steps and gone on with for four."""
    path = tmp_path_factory.mktemp("run") / "run"
    options = {"model": "cnn", "dataset": "npz", "data_dir": pictures, "channels": (3, 4), "batch_size": 30}
    assert train.main(list(flags({**options, "epochs": 2, "max_steps": 10, "impl": "both", "run_dir": path}))) == 0
    assert train.main(["--resume", str(path), "--max-steps", "14"]) == 0
    return path


def test_a_run_can_be_asked_verified_and_not_explained(run_dir: Path, pictures: Path, capsys: Capsys) -> None:
    assert checkpoint.load(run_dir)["steps"] == 14
    done = call(capsys, verify.main, "--checkpoint", run_dir, "--seeds", 3)
    assert (done.status, done.err) == (0, "")
    assert "CNN 3-4, 1 block a stage after 14 steps, npz" in " ".join(done.out.split())
    assert "comparisons agree in float64" in done.out
    done = call(capsys, predict.main, "--checkpoint", run_dir, "--dataset", "npz", "--data-dir", pictures)
    assert (done.status, done.err) == (0, "")
    assert f"{checkpoint.load(run_dir)['progress']['accuracy']:.2%}" in done.out
    done = call(capsys, explain.main, "--checkpoint", run_dir, "--out", run_dir / "page.html")
    assert done.status == 2
    assert "only perceptrons" in one_sentence(done.err)


def test_data_of_another_shape_are_refused(run_dir: Path, tmp_path: Path, capsys: Capsys) -> None:
    other = write_pictures(tmp_path / "other.npz", (6, 7))
    for main in (predict.main, verify.main):
        where = ["--dataset", "npz"] if main is predict.main else []
        done = call(capsys, main, "--checkpoint", run_dir, *where, "--data-dir", other)
        assert done.status == 2
        assert "npz has shape 6, 7, but this network was trained on npz with shape 7, 6" in one_sentence(done.err)


def test_a_checkpoint_of_another_network_is_refused(run_dir: Path, tmp_path: Path, capsys: Capsys) -> None:
    saved = checkpoint.load(run_dir)
    for spoil, named in (
        (lambda model: model.pop("stage1.norm.running_var"), "stage1.norm.running_var"),
        (lambda model: model.update({"stage1.block1.conv1.weight": torch.zeros(3, 3, 1, 1)}), "stage1.block1.conv1"),
        (lambda model: model.update({"stage3.conv.weight": torch.zeros(1)}), "stage3.conv.weight"),
    ):
        spoilt = {**saved, "model": dict(saved["model"])}
        spoil(spoilt["model"])
        torch.save(spoilt, tmp_path / "spoilt.pt")
        done = call(capsys, predict.main, "--checkpoint", tmp_path / "spoilt.pt", "--dataset", "npz")
        assert done.status == 2
        assert named in one_sentence(done.err)


@pytest.mark.parametrize("model", ["lenet5", "cnn"])
def test_the_presets_train(model: str, tmp_path: Path, capsys: Capsys) -> None:
    options = {"model": model, "dataset": "sample", "max_steps": 2, "examples": 100, "batch_size": 20, "impl": "both"}
    done = call(capsys, train.main, *flags(options | {"run_dir": tmp_path / "run"}))
    assert (done.status, done.err) == (0, "")
    assert f'model = "{model}"' in (tmp_path / "run" / "config.toml").read_text()


def test_pictures_in_color_train(tmp_path: Path, capsys: Capsys) -> None:
    npz = write_pictures(tmp_path / "color.npz", (3, 8, 6))
    options = {"model": "cnn", "dataset": "npz", "data_dir": npz, "channels": (4,), "max_steps": 3, "impl": "both"}
    done = call(capsys, train.main, *flags(options | {"shift": 0, "rotate": 0, "run_dir": tmp_path / "run"}))
    assert (done.status, done.err) == (0, "")
    assert checkpoint.load(tmp_path / "run")["model"]["stage1.conv.weight"].shape == (4, 3, 3, 3)


def write_tiny(folder: Path, side: int) -> Path:
    """25 pictures, of which 20 are for training."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(25, side, side)).astype(np.float32)
    np.savez(folder / "tiny.npz", x=x, y=np.arange(25) % 3)
    return folder / "tiny.npz"


REFUSED: dict[str, tuple[int, dict[str, object], str]] = {
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
    "too many stages": (7, {"model": "cnn"}, "3 stages halve a picture 3 times, and 7×7 pixels allow 2: give fewer"),
    "LeNet-5 of 20×20": (20, {"model": "lenet5"}, "LeNet-5 reads pictures of 28×28 or 32×32 pixels, not of 20×20"),
    "channels of LeNet-5": (28, {"model": "lenet5", "channels": (3,)}, "--channels goes with --model cnn, not with"),
    "no channels": (8, {"model": "cnn", "channels": ()}, "--channels is empty, but it must be"),
    "blocks below 0": (8, {"model": "cnn", "channels": (3,), "blocks": -1}, "--blocks is -1, but it must be"),
    "unknown activation": (8, {"model": "cnn", "activation": ("swish",)}, "invalid choice 'swish'"),
    "unknown model": (8, {"model": "resnet"}, "invalid choice 'resnet'"),
}


@pytest.mark.parametrize(("side", "options", "named"), REFUSED.values(), ids=REFUSED)
def test_a_wrong_command_line(
    side: int, options: dict[str, object], named: str, tmp_path: Path, capsys: Capsys
) -> None:
    npz = write_tiny(tmp_path, side)
    options = {"dataset": "npz", "data_dir": npz, "run_dir": tmp_path / "run"} | options
    done = call(capsys, train.main, *flags(options))
    assert done.status == 2
    assert named in one_sentence(done.err)
    assert files(tmp_path) == {"tiny.npz"}


def test_points_are_no_pictures(tmp_path: Path, capsys: Capsys) -> None:
    for model in ("lenet5", "cnn"):
        done = call(capsys, train.main, *flags({"model": model, "dataset": "points", "run_dir": tmp_path / "run"}))
        assert done.status == 2
        sentence = one_sentence(done.err)
        assert f"--model {model} reads pictures" in sentence
        assert "an example of points is 2: give --model mlp" in sentence
    assert files(tmp_path) == set()


@pytest.mark.parametrize(
    ("side", "channels", "batch_size"), [(2, (3,), 2), (2, (3,), 9), (3, (3,), 20), (5, (2,), 19), (4, (2,), 1)]
)
def test_the_least_that_batch_norm_trains_on(
    side: int, channels: tuple[int, ...], batch_size: int, tmp_path: Path
) -> None:
    """Two examples of a pixel each, or one of several pixels."""
    data = load("npz", write_tiny(tmp_path, side))
    settings = config(data, channels=channels, batch_size=batch_size, epochs=1, histogram_every=0)
    _, outcome = train_loop(settings, data, tmp_path / "run")
    assert outcome.finished
