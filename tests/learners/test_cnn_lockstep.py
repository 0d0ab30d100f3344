"""Convolutional networks in lock step with their twins: who is right is never stopped, who is wrong is named."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from manual_backprop.layers import batch_norm, max_pool2d
from manual_backprop.models.cnn import CNN
from manual_backprop.models.lenet5 import LeNet5
from manual_backprop.tape import Tape
from tests.support.problems import checked_learner, manual_learner, random_batches, rates
from tests.support.running import assert_same
from training.data import Dataset, Split
from training.data.augmentation import make_augment
from training.learners.checked import MAX_ERROR, CheckedLearner, GradientMismatch

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
    still = {name for name in start if torch.equal(start[name], end[name])}
    assert dtype == torch.bfloat16 or not still  # there 1 + 3e-4 is 1
    assert not {name for name in still if "running" in name or "conv" in name}


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


def of_evaluation(right: Callable[..., Any], dy: Tensor, cache: batch_norm.Cache) -> tuple[Tensor, ...]:
    """BN4 for BN3: the mean and the variance taken for constants."""
    return batch_norm.backward_of_evaluate(dy, cache)


def without_new_variance(right: Callable[..., Any], x: Tensor, *arguments: Tensor) -> tuple[Any, ...]:
    y, cache, mean, _ = right(x, *arguments)
    return y, cache, mean, arguments[3]


PATCHES: dict[str, tuple[Any, str, Any, str]] = {
    "pooling sends it elsewhere": (max_pool2d, "backward", flipped, "MP1, stage 2 conv, δ: at ["),
    "γ for β": (batch_norm, "backward", swapped, "BN1, stage 2 block 1 norm 2, ∂C/∂β: at ["),
    "BN3 without a term": (batch_norm, "backward", without_shift, "BN3, stage 2 block 1 conv 2, δ: at ["),
    "variance of n": (batch_norm, "forward", with_n, "stage 1 norm, running_var: at ["),
    "momentum": (batch_norm, "forward", twice_as_fast, "stage 1 norm, running_mean: at ["),
    "BN4 for BN3": (batch_norm, "backward", of_evaluation, "BN3, stage 2 block 1 conv 2, δ: at ["),
    "no new variance": (batch_norm, "forward", without_new_variance, "stage 1 norm, running_var: at ["),
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


def only_through_the_block(right: Callable[..., Tensor], tape: Tape, label: str, dy: Tensor, da: Tensor) -> Tensor:
    return right(tape, label, da)


def only_around_the_block(right: Callable[..., Tensor], tape: Tape, label: str, dy: Tensor, da: Tensor) -> Tensor:
    return right(tape, label, dy)


def without_a_way_around(
    right: Callable[..., Any], tape: Tape, layer: Any, name: str, *arguments: Any, **options: Any
) -> Any:
    """σ behind a block reads the block's last norm alone."""
    if name.endswith(".norm2.a"):
        arguments = (tape.outputs[name.removesuffix(".a")],)
    return right(tape, layer, name, *arguments, **options)


def without_activation(
    right: Callable[..., Any], tape: Tape, layer: Any, name: str, *d_outputs: Tensor, **options: Any
) -> Any:
    """What comes back to σ of the first block goes past it."""
    gradients = right(tape, layer, name, *d_outputs, **options)
    return d_outputs[0] if name == "stage2.block1.norm1.a" else gradients


NETWORKS: dict[str, tuple[str, Any, str]] = {
    "no way around": ("add", only_through_the_block, "RS1, stage 2 norm, ∂C/∂a: at ["),
    "only the way around": ("add", only_around_the_block, "RS1, stage 2 norm, ∂C/∂a: at ["),
    "a way around that is not forward's": ("forward", without_a_way_around, "stage 1 block 1 norm 2, a: at ["),
    "an activation passed over": ("backward", without_activation, "CV1, stage 2 block 1 norm 1, δ: at ["),
}


@pytest.mark.parametrize(("method", "wrong", "place"), NETWORKS.values(), ids=NETWORKS)
def test_a_wrong_network_is_named_at_the_first_step(
    method: str, wrong: Callable[..., Any], place: str, digits: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, right = small(digits, torch.float64), getattr(Tape, method)
    monkeypatch.setattr(Tape, method, lambda tape, *given, **options: wrong(right, tape, *given, **options))
    with pytest.raises(GradientMismatch) as caught:
        learner.advance(random_batches(3, 13, 400), rates(3, 0.05))
    assert str(caught.value).startswith(f"step 1: {place}")


@dataclass(frozen=True)
class BreaksAt(CNN):
    """Right until backward is called for the third time."""

    calls: list[None] = field(default_factory=list, compare=False, kw_only=True)

    def backward(self, p, d_output, g, tape):
        self.calls.append(None)
        dx = super().backward(p, d_output, g, tape)
        if len(self.calls) == 3:
            g["stage1.block1.conv2.weight"] = 1.01 * g["stage1.block1.conv2.weight"]
        return dx


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_mistake_at_a_later_step_is_named_with_it(digits: Split, dtype: torch.dtype) -> None:
    learner = small(digits, dtype, BreaksAt(**vars(SMALL)))
    with pytest.raises(GradientMismatch, match=r"step 3: CV2, stage 1 block 1 conv 2, ∂C/∂W: at \["):
        learner.advance(random_batches(5, 13, 400), rates(5, 0.05))
    assert learner.steps == 2
