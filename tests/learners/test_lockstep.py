"""Lock step: who is right is never stopped, who is wrong is stopped where it is wrong; state passes between them."""

import re
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch.testing import assert_close

from manual_backprop import losses
from manual_backprop.models.mlp import MLP
from manual_backprop.optimizers import SGD, Lion
from tests.support.both_ways import LOSSES
from tests.support.problems import (
    METHODS,
    checked_learner,
    manual_learner,
    random_batches,
    rates,
    reference_learner,
    relative_difference,
)
from tests.support.wrong_mlps import (
    BiasGradientIsTheMean,
    FirstLayerForgotten,
    SignOfDelta,
    SlopeForgottenInOutputLayer,
    SpelledMLP,
    WeightGradientTransposed,
    WeightTransposedInBP2,
)
from training.data import Dataset, Split
from training.errors import UserError
from training.learners.checked import MAX_ERROR, CheckedLearner, GradientMismatch
from training.learners.comparison import compare_passes

CONFIGURATIONS = {
    "sigmoid, quadratic": (("sigmoid", "sigmoid", "sigmoid"), "quadratic", 3.0, {"momentum": 0.5}),
    "tanh, softmax": (("tanh", "tanh", "identity"), "softmax-cross-entropy", 0.1, {"momentum": 0.9, "l2": 1e-3}),
    "relu, smoothed": (("relu", "relu", "identity"), "smoothed", 0.1, {"init": "he"}),
    "gelu and softplus": (("gelu", "softplus", "identity"), "sigmoid-cross-entropy", 0.3, {"l2": 1e-2}),
    "leaky relu": (("leaky_relu", "leaky_relu", "identity"), "squared-error", 0.02, {"init": "xavier"}),
}


each_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def noise_split(examples: int = 60, features: int = 5, classes: int = 5) -> Split:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(examples, features, generator=generator, dtype=torch.float64)
    return Split(x, torch.randint(0, classes, (examples,), generator=generator))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("activations", "loss", "lr", "settings"), CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_no_false_alarm(sample, activations, loss, lr, settings, dtype):
    manual = manual_learner(MLP((784, 12, 9, 10), activations), loss, sample.train, dtype=dtype, **settings)
    learner = checked_learner(manual, loss)
    losses = learner.advance(random_batches(40, 16, len(sample.train)), rates(40, lr))
    assert losses.shape == (40,)
    assert losses.isfinite().all()
    assert learner.steps == 40
    limit = {torch.float64: 1e-13, torch.float32: 1e-4, torch.bfloat16: 0.5}[dtype]
    assert learner.metrics[MAX_ERROR] < limit


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@each_method
def test_no_false_alarm_whatever_the_optimizer(sample, method, dtype):
    """Not even with all that an optimizer makes of gradients that are zero (dead pixels) or nearly so."""
    model, loss = MLP((784, 12, 9, 10), ("tanh", "relu", "identity")), "softmax-cross-entropy"
    manual = manual_learner(model, loss, sample.train, dtype=dtype, l2=1e-3, **method)
    lr = 0.1 if method["optimizer"] in ("sgd", "nesterov") else 1e-3
    losses = checked_learner(manual, loss).advance(random_batches(30, 16, len(sample.train)), rates(30, lr))
    assert losses.isfinite().all()


RULES = {
    "l1": ({"l1": 1e-3}, 0.0),
    "clipping by norm": ({"clip_norm": 0.1, "l1": 1e-3}, 0.0),
    "clipping by value": ({"clip_value": 1e-3}, 0.0),
    "max-norm": ({"max_norm": 1.0}, 0.0),
    "dropout": ({}, 0.4),
    "dropout and max-norm": ({"max_norm": 1.5, "clip_norm": 1.0}, 0.25),
}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("rules", "dropout"), RULES.values(), ids=RULES)
def test_no_false_alarm_with_what_keeps_weights_and_gradients_small(sample, rules, dropout, dtype):
    model, loss = MLP((784, 12, 9, 10), ("tanh", "relu", "identity"), dropout=dropout), "softmax-cross-entropy"
    manual = manual_learner(model, loss, sample.train, dtype=dtype, rules=rules, momentum=0.9)
    plain = manual_learner(MLP(model.sizes, model.activations), loss, sample.train, dtype=dtype, momentum=0.9)
    batches = random_batches(30, 16, len(sample.train))
    checked_learner(manual, loss).advance(batches, rates(30, 0.1))
    plain.advance(batches, rates(30, 0.1))
    assert relative_difference(manual.state_dict()["model"], plain.state_dict()["model"]) > 0.01  # it does something


@pytest.mark.parametrize("rule", ["l1", "clip_norm", "clip_value", "max_norm"])
def test_a_rule_that_only_one_side_has_is_noticed(rule, sample):
    model, loss = MLP((784, 12, 10), ("tanh", "identity")), "softmax-cross-entropy"
    manual = manual_learner(model, loss, sample.train, rules={rule: 1e-3})
    learner = checked_learner(manual, loss)
    setattr(learner.others[0], rule, 0.0)
    with pytest.raises(GradientMismatch, match="step 1: the step's new layer"):
        learner.advance(random_batches(1, 16, 100), rates(1, 0.1))


@dataclass(frozen=True)
class ForgetsDecayOfTheMean(Lion):
    """Wrong where only the next step would show it: the mean is not brought up to date."""

    def update(self, theta, gradient, state, lr, t, decay, split):
        super().update(theta, gradient, {"mean": state["mean"].clone()}, lr, t, decay, split)


def test_a_wrong_optimizer_state_is_named_at_once():
    """The reference takes over the manual state, so that a later step could not tell."""
    manual = manual_learner(MLP((5, 4, 5), ("tanh", "identity")), "quadratic", noise_split(), optimizer="lion")
    learner = checked_learner(manual, "quadratic")
    manual.optimizer = ForgetsDecayOfTheMean()
    with pytest.raises(GradientMismatch, match=r"step 1: the step's new mean of layer1\.weight: "):
        learner.advance(random_batches(2, 4, 60), rates(2, 0.01))


@each_method
def test_what_is_checked_is_what_is_trained(sample, method):
    """A checked run takes exactly the steps that an unchecked one takes."""
    model, loss = MLP((784, 12, 10), ("tanh", "identity")), "softmax-cross-entropy"
    alone, checked = (manual_learner(model, loss, sample.train, dtype=torch.float32, **method) for _ in range(2))
    both = checked_learner(checked, loss)
    batches = random_batches(20, 8, len(sample.train))
    assert torch.equal(alone.advance(batches, rates(20, 0.01)), both.advance(batches, rates(20, 0.01)))
    assert torch.equal(alone.params.theta, both.manual.params.theta)


@dataclass(frozen=True)
class BreaksAt(MLP):
    """Right until backward is called for the `breaks_at`-th time, then `wrong`."""

    wrong: type[SpelledMLP] = SpelledMLP
    breaks_at: int = 3
    calls: list[None] = field(default_factory=list, compare=False)

    def backward(self, p, d_output, g, tape):
        self.calls.append(None)
        model = self.wrong if len(self.calls) >= self.breaks_at else MLP
        return model(self.sizes, self.activations).backward(p, d_output, g, tape)


class TransposedInLayer2(WeightGradientTransposed):
    def weight_gradient(self, l, delta, a_before, a, params):
        return a_before.T @ delta if l == 2 else delta.T @ a_before


MISTAKES = {
    TransposedInLayer2: "BP4, layer 2, ∂C/∂W",
    BiasGradientIsTheMean: "BP3, layer 3, ∂C/∂b",
    SlopeForgottenInOutputLayer: "BP1, layer 3, δ",
    SignOfDelta: "BP1, layer 3, δ",
    WeightTransposedInBP2: "BP2, layer 2, ∂C/∂a",
    FirstLayerForgotten: "BP4, layer 1, ∂C/∂W",
}


def breaking(wrong: type[SpelledMLP], breaks_at: int, dtype: torch.dtype, every: int = 1) -> CheckedLearner:
    model = BreaksAt((5, 5, 5, 5), ("tanh", "softplus", "sigmoid"), wrong, breaks_at)
    return checked_learner(manual_learner(model, "quadratic", noise_split(), dtype=dtype), "quadratic", every)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("wrong", "place"), MISTAKES.items(), ids=[wrong.__name__ for wrong in MISTAKES])
def test_a_mistake_is_named_with_its_step_equation_layer_and_tensor(wrong, place, dtype):
    learner = breaking(wrong, 3, dtype)
    with pytest.raises(GradientMismatch, match=re.escape(f"step 3: {place}: at [")) as caught:
        learner.advance(random_batches(9, 4, 60), rates(9, 0.1))
    assert caught.value.step == 3
    assert caught.value.report.failures


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_step_that_fails_is_not_taken(dtype):
    learner = breaking(TransposedInLayer2, 3, dtype)
    batches = random_batches(9, 4, 60)
    learner.advance(batches[:2], rates(2, 0.1))
    before = learner.manual.params.theta.clone()
    with pytest.raises(GradientMismatch, match="step 3: "):
        learner.advance(batches[2:], rates(7, 0.1))
    assert learner.steps == 2
    assert torch.equal(learner.manual.params.theta, before)


@dataclass(frozen=True)
class BiasesDecay(SGD):
    """A wrong update: L2 on everything."""

    def update(self, theta, gradient, state, lr, t, decay, split):
        super().update(theta, gradient, state, lr, t, decay.max().expand_as(theta), split)


def test_a_wrong_update_is_named_and_undone():
    manual = manual_learner(MLP((5, 4, 5), ("tanh", "identity")), "quadratic", noise_split(), l2=0.1, momentum=0.9)
    learner = checked_learner(manual, "quadratic")
    learner.advance(random_batches(2, 4, 60), rates(2, 0.1))
    before = learner.state_dict()
    manual.optimizer = BiasesDecay(0.9)
    with pytest.raises(GradientMismatch, match=r"step 3: the step's new layer1\.bias: at \["):
        learner.advance(random_batches(2, 4, 60, seed=1), rates(2, 0.1))
    after = learner.state_dict()
    assert after["steps"] == 2
    for part in (lambda state: state["model"], lambda state: state["optimizer"]["velocity"]):
        assert all(torch.equal(part(after)[name], part(before)[name]) for name in part(before))


def test_every_nth_step_is_checked_and_no_other():
    learner = breaking(TransposedInLayer2, 1, torch.float64, every=4)
    batches = random_batches(9, 4, 60)
    learner.advance(batches[:3], rates(3, 0.1))
    assert learner.steps == 3
    assert not learner.metrics
    with pytest.raises(GradientMismatch, match="step 4: BP4, layer 2"):
        learner.advance(batches[3:], rates(6, 0.1))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_memorizing_until_hardly_a_gradient_is_left_raises_no_alarm(sample, dtype):
    few = Split(sample.train.x[:200], sample.train.y[:200])
    model = MLP((784, 16, 16, 10), ("relu", "relu", "identity"))
    manual = manual_learner(model, "softmax-cross-entropy", few, dtype=dtype, init="he", momentum=0.9)
    learner = checked_learner(manual, "softmax-cross-entropy")
    losses = learner.advance(random_batches(700, 20, 200), rates(700, 0.05))
    assert losses[-100:].median() < 1e-3
    assert losses[-100:].min() < 1e-4


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_minimum_where_the_examples_gradients_cancel_raises_no_alarm(dtype):
    """A regression of noise, all of it in every batch: the δs stay, and their sums go to rounding."""
    manual = manual_learner(MLP((5, 5), ("tanh",)), "quadratic", noise_split(), dtype=dtype)
    learner = checked_learner(manual, "quadratic")
    learner.advance(torch.arange(60).expand(150, 60), rates(150, 1.0))
    result = manual.backpropagate(*noise_split().batch(torch.arange(60), dtype))
    assert result.gradients["layer1.weight"].norm() < 1e-6
    assert result.deltas["layer1"].norm() > 0.05


def test_a_single_confident_example_raises_no_alarm():
    """Logits of thousands: p − y is nothing but rounding, or exactly zero."""
    for dtype in (torch.float64, torch.float32):
        for scale in (10.0, 30.0, 1000.0):
            train = Split(torch.eye(3, dtype=torch.float64), torch.arange(3))
            manual = manual_learner(MLP((3, 3), ("identity",)), "softmax-cross-entropy", train, dtype=dtype)
            manual.params["layer1.weight"].copy_(scale * torch.eye(3))
            manual.params["layer1.bias"].zero_().add_(0.1)
            checked_learner(manual, "softmax-cross-entropy").advance(torch.tensor([[0, 1, 2]]), rates(1, 0.1))


@pytest.mark.parametrize("change", ["missing", "superfluous", "empty", "transposed"])
@pytest.mark.parametrize("which", ["manual", "reference"])
def test_an_optimizer_state_that_does_not_fit_is_refused(which, change):
    learner = manual_learner(MLP((5, 4, 5), ("tanh", "identity")), "quadratic", noise_split(), optimizer="adam")
    if which == "reference":
        learner = reference_learner(learner, "quadratic")
    state = learner.state_dict()
    if change == "missing":
        del state["optimizer"]["mean"]["layer1.bias"]
    elif change == "superfluous":
        state["optimizer"]["velocity"] = state["optimizer"]["mean"]
    elif change == "empty":
        state["optimizer"] = {}
    else:
        state["optimizer"]["mean"]["layer1.weight"] = state["optimizer"]["mean"]["layer1.weight"].T
    with pytest.raises(
        ValueError, match=r"layer1|the optimizer's state is (empty|mean, square_mean, velocity), but here"
    ):
        learner.load_state_dict(state)


@each_method
def test_state_passes_from_one_implementation_to_the_other_and_back(method):
    model = MLP((5, 4, 5), ("tanh", "identity"))
    manual = manual_learner(model, "quadratic", noise_split(), **method, l2=0.01)
    batches = random_batches(60, 6, 60)
    manual.advance(batches[:20], rates(20, 0.01))

    reference = reference_learner(manual, "quadratic")
    assert reference.steps == 20
    reference.advance(batches[20:40], rates(20, 0.01))
    manual.advance(batches[20:40], rates(20, 0.01))
    assert relative_difference(manual.state_dict()["model"], reference.state_dict()["model"]) < 1e-13

    fresh = manual_learner(model, "quadratic", noise_split(), **method, l2=0.01)
    fresh.load_state_dict(reference.state_dict())
    assert fresh.steps == 40
    fresh.advance(batches[40:], rates(20, 0.01))
    reference.advance(batches[40:], rates(20, 0.01))
    mine, theirs = fresh.state_dict(), reference.state_dict()
    assert relative_difference(mine["model"], theirs["model"]) < 1e-13
    assert mine["optimizer"].keys() == theirs["optimizer"].keys() == manual.optimizer_state.keys()
    for key in theirs["optimizer"]:
        assert relative_difference(mine["optimizer"][key], theirs["optimizer"][key]) < 1e-13


@pytest.mark.parametrize("change", ["missing", "superfluous", "transposed"])
@pytest.mark.parametrize("which", ["manual", "reference"])
def test_a_state_that_does_not_fit_is_refused(which, change):
    learner = manual_learner(MLP((5, 4, 5), ("tanh", "identity")), "quadratic", noise_split())
    if which == "reference":
        learner = reference_learner(learner, "quadratic")
    state = learner.state_dict()
    if change == "missing":
        del state["model"]["layer1.weight"]
    elif change == "superfluous":
        state["model"]["layer9.weight"] = torch.zeros(1)
    else:
        state["model"]["layer1.weight"] = state["model"]["layer1.weight"].T
    with pytest.raises(ValueError, match=r"layer9.weight" if change == "superfluous" else r"layer1.weight"):
        learner.load_state_dict(state)


@pytest.mark.parametrize("loss", LOSSES)
def test_all_learners_say_the_same_of_a_data_set(loss):
    split = noise_split()
    manual = manual_learner(MLP((5, 4, 5), ("tanh", "identity")), loss, split)
    reference, both = reference_learner(manual, loss), checked_learner(manual, loss)
    C, output = manual.evaluate(split.x, split.y)
    for other in (reference, both):
        C_other, output_other = other.evaluate(split.x, split.y)
        torch.testing.assert_close(C_other, C, rtol=1e-13, atol=0)
        torch.testing.assert_close(output_other, output, rtol=1e-12, atol=1e-14)
    mean = manual.backpropagate(split.x, split.y).loss
    torch.testing.assert_close(C / len(split), mean, rtol=1e-13, atol=0)


def test_backpropagate_moves_nothing():
    manual = manual_learner(MLP((5, 4, 5), ("tanh", "identity")), "quadratic", noise_split(), momentum=0.9)
    for learner in (manual, reference_learner(manual, "quadratic")):
        before = learner.state_dict()
        learner.backpropagate(noise_split().x, noise_split().y)
        after = learner.state_dict()
        assert after["steps"] == before["steps"]
        assert relative_difference(after["model"], before["model"]) == 0


class ZeroGradient(losses.Quadratic):
    """A cost whose backward forgets everything, or one example."""

    def __init__(self, rows: slice) -> None:
        object.__setattr__(self, "rows", rows)

    def backward(self, dC, cache):
        gradient = super().backward(dC, cache).clone()
        gradient[self.rows] = 0
        return gradient


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("rows", [slice(None), slice(0, 1)], ids=["all zero", "one example zero"])
def test_a_cost_whose_gradient_is_zero_is_caught(rows: slice, dtype: torch.dtype, sample: Dataset) -> None:
    manual = manual_learner(MLP((784, 5, 10), ("tanh", "tanh")), "quadratic", sample.train, dtype=dtype)
    learner = checked_learner(manual, "quadratic")
    manual.loss = ZeroGradient(rows)
    with pytest.raises(GradientMismatch, match="step 1: ∂C/∂output"):
        learner.advance(random_batches(1, 7, 100), rates(1, 0.1))


def test_saturated_and_underflowing_layers_raise_no_alarm(sample: Dataset) -> None:
    for activation in ("tanh", "gelu"):
        manual = manual_learner(MLP((784, 16, 16, 10), (activation,) * 3), "quadratic", sample.train, momentum=0.9)
        checked_learner(manual, "quadratic").advance(random_batches(60, 10, 10_000), rates(60, 0.5))


def test_beside_another_pass_every_layer_is_computed_from_it():
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

    def forward(self, p, x, tape):
        return super().forward({**p, "layer1.bias": p["layer1.bias"] + 1e-18}, x, tape)


def test_a_z_on_the_other_side_of_a_kink_by_rounding_is_no_alarm():
    manual = manual_learner(Nudged((2, 3, 2), ("relu", "identity")), "quadratic", noise_split())
    manual.params["layer1.weight"].copy_(torch.tensor([[0.5, 0.5], [0.3, -0.2], [0.25, 0.25]]))
    manual.params["layer1.bias"].zero_()
    x, y = torch.tensor([[1.0, -1.0], [0.5, 0.25]], dtype=torch.float64), torch.tensor([0, 1])
    reference = reference_learner(manual, "quadratic")
    mine, other = manual.backpropagate(x, y), reference.backpropagate(x, y)
    assert not torch.equal(mine.deltas["layer1"] == 0, other.deltas["layer1"] == 0)
    assert compare_passes(manual, [reference], x, y).report.passed


def test_a_twin_that_does_not_observe_every_call_is_said_to(monkeypatch):
    """Left uncompared, the call could be wrong."""
    manual = manual_learner(MLP((5, 4, 5), ("tanh", "identity")), "quadratic", noise_split())
    learner = checked_learner(manual, "quadratic")
    module = learner.others[0].module
    observed = {name: part for name, part in module.observed().items() if name != "layer1.a"}
    monkeypatch.setattr(module, "observed", lambda: observed)
    with pytest.raises(UserError, match=r"only one of the model and its twin has a layer1: the twin's observed\(\)"):
        learner.advance(random_batches(1, 4, 60), rates(1, 0.1))
