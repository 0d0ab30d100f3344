"""Lock step over every family: who is right is never stopped, whatever the number format, optimizer and settings."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from manual_backprop.models.mlp import MLP
from manual_backprop.tape import Tape
from tests.support.lockstep import DTYPES, NAMES, SOFTMAX, TEXTS, advance, in_epochs, learner
from tests.support.problems import (
    METHODS,
    checked_learner,
    manual_learner,
    noise_split,
    random_batches,
    rates,
    reference_learner,
    relative_difference,
)
from training.data import Dataset, Split
from training.learners.checked import MAX_ERROR, GradientMismatch
from training.learners.comparison import compare_passes

LIMITS = {torch.float64: 1e-12, torch.float32: 1e-3, torch.bfloat16: 0.5}
LIMITS_OF_MLPS = {torch.float64: 1e-13, torch.float32: 1e-4, torch.bfloat16: 0.5}

each_family = pytest.mark.parametrize("name", NAMES)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
first_exact = pytest.mark.parametrize(
    "dtype", [torch.float64, *(pytest.param(dtype, marks=pytest.mark.long) for dtype in DTYPES[1:])], ids=str
)
exact_and_single = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


def rate(optimizer: str) -> float:
    return {"sgd": 0.05, "nesterov": 0.05, "lion": 3e-4}.get(optimizer, 1e-3)


def assert_agreed(both: Any, name: str, losses: Tensor) -> None:
    assert losses.isfinite().all()
    assert both.proof.steps == both.steps == len(losses)
    if (
        "lenet5" in name or "cnn" in name
    ):  # in lower formats pixels tie that do not in truth: another may be the largest
        assert both.manual.dtype != torch.float64 or both.metrics[MAX_ERROR] < LIMITS[both.manual.dtype]
    else:
        assert both.metrics[MAX_ERROR] < (LIMITS_OF_MLPS if name == "mlp" else LIMITS)[both.manual.dtype]


@pytest.mark.sweep(4)
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(name, dtype, marks=[pytest.mark.slow] * (dtype == torch.bfloat16 and name in ("lenet5", "cnn")))
        for name in NAMES
        for dtype in DTYPES
    ],
    ids=str,
)
def test_no_false_alarm(name: str, dtype: torch.dtype) -> None:
    """And every parameter and running statistic moves, but those whose gradient is zero in exact arithmetic."""
    both = learner(name, "both", dtype)
    start = both.state_dict()["model"]
    assert_agreed(both, name, advance(both, 3))
    end = both.state_dict()["model"]
    still = {key for key in start if torch.equal(start[key], end[key])}
    assert still <= both.manual.zeros.keys()


@pytest.mark.long
@each_dtype
@each_family
def test_no_false_alarm_over_a_hundred_steps(name: str, dtype: torch.dtype) -> None:
    both = learner(name, "both", dtype)
    losses = in_epochs(both, 100, lr=0.01)
    assert_agreed(both, name, losses)
    assert losses[-20:].mean() < losses[:20].mean()


def marks_of(name: str, method: str, dtype: torch.dtype) -> list[pytest.MarkDecorator]:
    if name != "mlp" and (method, dtype) == ("lion", torch.bfloat16):
        known = "where c is 0 in bfloat16, Lion takes no step and the truth a whole one: equal to the bit, yet stopped"
        return [pytest.mark.long, pytest.mark.xfail(raises=GradientMismatch, strict=False, reason=known)]
    if name != "mlp":
        return [pytest.mark.long]
    return [] if dtype == torch.float64 else [pytest.mark.slow]


@pytest.mark.parametrize(
    ("name", "method", "dtype"),
    [
        pytest.param(name, method, dtype, marks=marks_of(name, method, dtype), id=f"{name}, {method}, {dtype}")
        for name in NAMES
        for method in METHODS
        for dtype in DTYPES
    ],
)
def test_no_false_alarm_whatever_the_optimizer(name: str, method: str, dtype: torch.dtype) -> None:
    """Not even with all that an optimizer makes of gradients that are zero (dead pixels) or nearly so."""
    both = learner(name, "both", dtype, l2=1e-3, **METHODS[method])
    steps = 4 if (name, dtype) == ("mlp", torch.float64) else 20
    assert_agreed(both, name, in_epochs(both, steps, rate(METHODS[method]["optimizer"])))


SETTINGS: dict[str, tuple[str, float, dict[str, Any]]] = {
    "sigmoid, quadratic": ("mlp", 3.0, {"activation": ("sigmoid",), "loss": "quadratic", "momentum": 0.5}),
    "tanh": ("mlp", 0.1, {"activation": ("tanh", "tanh", "identity"), "momentum": 0.9, "l2": 1e-3}),
    "relu, smoothed": ("mlp", 0.1, {"activation": ("relu",), "label_smoothing": 0.15, "init": "he"}),
    "gelu and softplus": (
        "mlp",
        0.3,
        {"activation": ("gelu", "softplus", "identity"), "loss": "sigmoid-cross-entropy", "l2": 1e-2},
    ),
    "leaky relu": (
        "mlp",
        0.02,
        {"activation": ("leaky_relu", "leaky_relu", "identity"), "loss": "squared-error", "init": "xavier"},
    ),
    "LeNet-5 of scaled tanh": ("lenet5", 0.02, {"activation": ("scaled_tanh",), "init": "xavier"}),
    "LeNet-5 of relu": ("lenet5", 0.02, {"activation": ("relu",), "init": "xavier"}),
    "dropout of channels": ("cnn", 0.05, {"dropout": 0.3}),
    "no blocks": ("cnn", 0.05, {"blocks": 0}),
    "leaky relu between norms": ("cnn", 0.05, {"activation": ("leaky_relu",)}),
    "softplus between norms": ("cnn", 0.05, {"activation": ("softplus",)}),
    "three stages to one pixel": ("cnn", 0.05, {"channels": (3, 4, 5)}),
    "limits of kernels": ("cnn", 0.05, {"l1": 1e-3, "clip_norm": 0.5, "max_norm": 1.0}),
    "a segment of one character": ("cell", 0.01, {"context": 1}),
}


@pytest.mark.sweep(4)
@first_exact
@pytest.mark.parametrize(("name", "lr", "options"), SETTINGS.values(), ids=SETTINGS)
def test_no_false_alarm_whatever_the_settings(
    name: str, lr: float, options: dict[str, Any], dtype: torch.dtype
) -> None:
    method = {} if name == "cell" else {"optimizer": "sgd", "momentum": 0.9}
    both = learner(name, "both", dtype, **method | options)
    steps = 3 if dtype == torch.float64 else 20
    assert_agreed(both, name, in_epochs(both, steps, lr))


RULES = {
    "l1": {"l1": 1e-3},
    "clipping by norm": {"clip_norm": 0.1, "l1": 1e-3},
    "clipping by value": {"clip_value": 1e-3},
    "max-norm": {"max_norm": 1.0},
    "dropout": {"dropout": 0.4},
    "dropout and max-norm": {"dropout": 0.25, "max_norm": 1.5, "clip_norm": 1.0},
}


@pytest.mark.sweep(4)
@first_exact
@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_no_false_alarm_with_what_keeps_weights_and_gradients_small(
    rules: dict[str, float], dtype: torch.dtype
) -> None:
    both, plain = learner("mlp", "both", dtype, momentum=0.9, **rules), learner("mlp", dtype=dtype, momentum=0.9)
    for one in (both, plain):
        advance(one, 10, lr=0.1)
    assert relative_difference(both.state_dict()["model"], plain.state_dict()["model"]) > 0.01  # it does something


# Where hardly anything but rounding is left


@pytest.mark.long
@exact_and_single
def test_memorizing_until_hardly_a_gradient_is_left_raises_no_alarm(sample: Dataset, dtype: torch.dtype) -> None:
    few = Split(sample.train.x[:200], sample.train.y[:200])
    model = MLP((784, 16, 16, 10), ("relu", "relu", "identity"))
    manual = manual_learner(model, SOFTMAX["loss"], few, dtype=dtype, init="he", momentum=0.9)
    learner = checked_learner(manual, SOFTMAX["loss"], every=5)
    losses = learner.advance(random_batches(700, 20, 200), rates(700, 0.05))
    assert losses[-100:].median() < 1e-3
    assert losses[-100:].min() < 1e-4


@pytest.mark.slow
@exact_and_single
def test_a_minimum_where_the_examples_gradients_cancel_raises_no_alarm(dtype: torch.dtype) -> None:
    """A regression of noise, all of it in every batch: the δs stay, and their sums go to rounding."""
    manual = manual_learner(MLP((5, 5), ("tanh",)), "quadratic", noise_split(), dtype=dtype)
    learner = checked_learner(manual, "quadratic", every=6)
    learner.advance(torch.arange(60).expand(150, 60), rates(150, 1.0))
    result = manual.backpropagate(*noise_split().batch(torch.arange(60), dtype))
    assert result.gradients["layer1.weight"].norm() < 1e-6
    assert result.deltas["layer1"].norm() > 0.05


@pytest.mark.parametrize("scale", [10.0, 30.0, 1000.0])
@exact_and_single
def test_a_single_confident_example_raises_no_alarm(dtype: torch.dtype, scale: float) -> None:
    """Logits of thousands: p − y is nothing but rounding, or exactly zero."""
    train = Split(torch.eye(3, dtype=torch.float64), torch.arange(3))
    manual = manual_learner(MLP((3, 3), ("identity",)), SOFTMAX["loss"], train, dtype=dtype)
    manual.params["layer1.weight"].copy_(scale * torch.eye(3))
    manual.params["layer1.bias"].zero_().add_(0.1)
    checked_learner(manual, SOFTMAX["loss"]).advance(torch.tensor([[0, 1, 2]]), rates(1, 0.1))


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["tanh", "gelu"])
def test_saturated_and_underflowing_layers_raise_no_alarm(sample: Dataset, activation: str) -> None:
    manual = manual_learner(MLP((784, 16, 16, 10), (activation,) * 3), "quadratic", sample.train, momentum=0.9)
    checked_learner(manual, "quadratic", every=3).advance(random_batches(60, 10, 10_000), rates(60, 0.5))


def test_a_gradient_that_is_declared_to_be_zero_costs_no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lock step measures how rounding is magnified only where something differs, as the undeclared gradient does."""

    def refuse(*arguments: Any) -> Any:
        raise AssertionError("something differs")

    monkeypatch.setattr("training.learners.comparison.magnification", refuse)
    advance(learner("block", "both"), 6)
    both = learner("block", "both")
    both.manual.zeros = {}
    with pytest.raises(AssertionError, match="something differs"):
        advance(both, 15)


# What is compared, and at which values


def test_beside_another_pass_every_layer_is_computed_from_it() -> None:
    """With `at` a call's own output is reported, and that pass's output goes on."""
    manual = manual_learner(MLP((5, 4, 5), ("tanh", "identity")), "quadratic", noise_split())
    reference = reference_learner(manual, "quadratic")
    x, y = noise_split().batch(torch.arange(9), torch.float64)
    free = manual.backpropagate(x, y)
    z1, z2 = free.outputs["layer1"] + 0.1, free.outputs["layer2"] + 0.1
    a1 = z1.tanh()
    shifted = replace(free, outputs={"layer1": z1, "layer1.a": a1, "layer2": z2, "layer2.a": z2})
    own = reference.backpropagate(x, y, at=shifted)
    p = manual.parameters
    assert_close(own.outputs["layer1"], free.outputs["layer1"])
    assert_close(own.outputs["layer1.a"], a1)
    assert_close(own.outputs["layer2"], a1 @ p["layer2.weight"].T + p["layer2.bias"])
    assert_close(own.deltas["layer1.a"], own.deltas["layer2"] @ p["layer2.weight"])
    assert_close(own.deltas["layer1"], own.deltas["layer1.a"] * (1 - a1.square()))
    assert_close(own.gradients["layer2.weight"], own.deltas["layer2"].T @ a1)


@dataclass(frozen=True)
class Nudged(MLP):
    """Right, but the first layer's z is off by less than any rounding."""

    def forward(self, p: Any, x: Tensor, tape: Tape) -> Tensor:
        return super().forward({**p, "layer1.bias": p["layer1.bias"] + 1e-18}, x, tape)


def test_a_z_on_the_other_side_of_a_kink_by_rounding_is_no_alarm() -> None:
    manual = manual_learner(Nudged((2, 3, 2), ("relu", "identity")), "quadratic", noise_split())
    manual.params["layer1.weight"].copy_(torch.tensor([[0.5, 0.5], [0.3, -0.2], [0.25, 0.25]]))
    manual.params["layer1.bias"].zero_()
    x, y = torch.tensor([[1.0, -1.0], [0.5, 0.25]], dtype=torch.float64), torch.tensor([0, 1])
    reference = reference_learner(manual, "quadratic")
    mine, other = manual.backpropagate(x, y), reference.backpropagate(x, y)
    assert not torch.equal(mine.deltas["layer1"] == 0, other.deltas["layer1"] == 0)
    assert compare_passes(manual, [reference], x, y).report.passed


@each_family
def test_each_learner_is_given_examples_in_its_own_format_and_ids_as_they_are(name: str) -> None:
    both = learner(name, "both", torch.float32)
    seen = set()

    class Watched(type(both.manual.model)):  # type: ignore[misc]
        def forward(self, p: Any, x: Tensor, tape: Tape) -> Tensor:
            seen.add(("model", x.dtype))
            return super().forward(p, x, tape)

    both.manual.model = Watched(**vars(both.manual.model))
    for who, other in zip(("twin", "truth"), both.others, strict=True):
        other.module.register_forward_pre_hook(lambda module, given, who=who: seen.add((who, given[0].dtype)))
    advance(both, 1)
    ids = learner(name).batch(torch.arange(1))[0].dtype == torch.int64
    assert ids or name not in TEXTS
    formats = {"model": torch.float32, "twin": torch.float32, "truth": torch.float64}
    assert seen == {(who, torch.int64 if ids else dtype) for who, dtype in formats.items()}
