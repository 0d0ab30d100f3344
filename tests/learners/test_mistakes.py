"""Lock step over every family: who is wrong is stopped at the first wrong step, which is not taken, and named."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from gallery.perceptron import (
    BiasGradientIsTheMean,
    FirstLayerForgotten,
    SlopeForgottenInOutputLayer,
    WeightGradientTransposed,
    WeightTransposedInBP2,
)
from manual_backprop import losses
from manual_backprop.layers import batch_norm, max_pool2d
from manual_backprop.optimizers import SGD, Lion
from manual_backprop.tape import Tape
from tests.support.lockstep import NAMES, advance, learner
from tests.support.running import assert_same
from tests.support.text.layers import attention, embedding, matmul, recurrent_cell
from tests.support.text.recurrent import RecurrentTwin
from tests.support.wrong_layers import (
    flipped,
    forgetting,
    keys_without_the_scale,
    of_evaluation,
    only_through_the_block,
    seeing_ahead,
    stopped_in_time,
    swapped,
    twice_as_fast,
    values_through_what_was_not_dropped,
    with_n,
    without_a_way_around,
    without_activation,
    without_the_sum_of_softmax,
)
from training.errors import UserError
from training.learners.checked import CheckedLearner, GradientMismatch
from training.learners.manual import ManualLearner

each_family = pytest.mark.parametrize("name", NAMES)
each_dtype = pytest.mark.parametrize(
    "dtype", [torch.float64, pytest.param(torch.float32, marks=pytest.mark.slow)], ids=str
)

Right = Callable[..., Any]
Spoil = Callable[[CheckedLearner, pytest.MonkeyPatch], None]  # makes a part of a right learner wrong


def in_layer(layer: Any, function: str, wrong: Right) -> Spoil:
    """`wrong` is given the right function and its arguments."""
    return lambda both, patch: patch.setattr(layer, function, partial(wrong, getattr(layer, function)))


def in_tape(method: str, wrong: Right) -> Spoil:
    def spoil(both: CheckedLearner, patch: pytest.MonkeyPatch) -> None:
        right = getattr(Tape, method)
        patch.setattr(Tape, method, lambda tape, *given, **options: wrong(right, tape, *given, **options))

    return spoil


def in_backward(wrong: Callable[[Any, Any], None]) -> Spoil:
    """`wrong` is given the gradients of a whole right pass, and the learner."""

    def spoil(both: CheckedLearner, patch: pytest.MonkeyPatch) -> None:
        class Wrong(type(both.manual.model)):  # type: ignore[misc]
            def backward(self, p: Any, d_output: Tensor, g: Any, tape: Tape) -> Tensor | None:
                dx = super().backward(p, d_output, g, tape)
                wrong(g, both)
                return dx

        both.manual.model = Wrong(**vars(both.manual.model))

    return spoil


def model(kind: type) -> Spoil:
    return lambda both, patch: setattr(both.manual, "model", kind(**vars(both.manual.model)))


def optimizer(wrong: Any) -> Spoil:
    return lambda both, patch: setattr(both.manual, "optimizer", wrong)


def rule(name: str) -> Spoil:
    """Only the twin has this penalty, or this limit."""

    def spoil(both: CheckedLearner, patch: pytest.MonkeyPatch) -> None:
        for other in both.others:
            setattr(other, name, 1e-3)

    return spoil


def stopped(both: CheckedLearner, spoil: Spoil, patch: pytest.MonkeyPatch) -> GradientMismatch:
    """After a right step the next is wrong: what is raised there. The learner is as it was before that step."""
    advance(both, 1)
    before = both.state_dict()
    with patch.context() as wrong:
        spoil(both, wrong)
        with pytest.raises(GradientMismatch) as caught:
            advance(both, 2)
    assert caught.value.step == 2
    assert both.proof.after(1).startswith("1 of 1 steps agree; ")
    assert_same(both.state_dict(), before)
    return caught.value


# In any family


@pytest.mark.sweep(4)
@each_dtype
@each_family
def test_a_gradient_that_is_off_is_named(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    both = learner(name, "both", dtype)
    (last,) = list(both.manual.model.shapes)[-1:]

    def off(g: Any, both: CheckedLearner) -> None:
        g[last] = 1.01 * g[last]

    error = stopped(both, in_backward(off), monkeypatch)
    assert [row.name for row in error.report.failures] == [f"d{last}"]


@dataclass(frozen=True)
class WrongStep:
    """Another optimizer's step, and then all of θ is off."""

    right: Any

    def update(self, theta: Tensor, *rest: Any) -> None:
        self.right.update(theta, *rest)
        theta.mul_(1.0 + 1e-6)


@pytest.mark.sweep(4)
@each_family
def test_a_wrong_step_is_named_and_undone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the learner can go on from there."""
    both = learner(name, "both")
    right = both.manual.optimizer
    error = stopped(both, optimizer(WrongStep(right)), monkeypatch)
    assert str(error).startswith(f"step 2: the step's new {next(iter(both.manual.model.shapes))}: at [")
    both.manual.optimizer = right
    advance(both, 1)
    assert both.proof.steps == 2


# Of one family


class TransposedInLayer2(WeightGradientTransposed):
    def weight_gradient(self, l, delta, a_before, a, params):
        return a_before.T @ delta if l == 2 else delta.T @ a_before


class TransposedOnTheWayFromLayer3(WeightTransposedInBP2):
    def da_before(self, l, delta, params):
        return super().da_before(l, delta, params) if l == 3 else delta @ params[f"layer{l}.weight"]


def of_cost(rows: slice) -> Spoil:
    """A cost whose backward forgets these examples."""

    class ZeroGradient(losses.Quadratic):
        def backward(self, dC: Any, cache: Any) -> Tensor:
            gradient = super().backward(dC, cache).clone()
            gradient[rows] = 0
            return gradient

    return lambda both, patch: setattr(both.manual, "loss", ZeroGradient())


@dataclass(frozen=True)
class BiasesDecay(SGD):
    """L2 on everything."""

    def update(self, theta, gradient, state, lr, t, decay, split):
        super().update(theta, gradient, state, lr, t, decay.max().expand_as(theta), split)


@dataclass(frozen=True)
class MeanStaysBehind(Lion):
    """Wrong where only the next step would show it, and the reference takes over this state: the mean stays behind."""

    def update(self, theta, gradient, state, lr, t, decay, split):
        super().update(theta, gradient, {"mean": state["mean"].clone()}, lr, t, decay, split)


SQUARE = {"hidden": (10, 10), "activation": ("tanh", "softplus", "sigmoid"), "loss": "quadratic"}
SQUARE |= {"l2": 0.1, "momentum": 0.9}
LION = {"optimizer": "lion"}


def in_cell_where(carried: bool, gradient: int) -> Spoil:
    """Forgets a gradient of the call that begins with the carried state, or of all others."""

    def spoil(both: CheckedLearner, patch: pytest.MonkeyPatch) -> None:
        def use(cache: Any) -> bool:
            return torch.equal(cache[1], both.manual.memory["h"]) == carried

        in_layer(recurrent_cell, "backward", partial(forgetting, gradient=gradient, use=use))(both, patch)

    return spoil


def a_little(g: Any, both: CheckedLearner) -> None:
    """Declared to be zero in exact arithmetic, and still watched."""
    g["k.bias"] = g["k.bias"] + (1e-9 if both.manual.dtype == torch.float64 else 1e-4)


class HandsOnTheStateBefore(RecurrentTwin):
    def forward(self, ids: Tensor, memory: dict[str, Tensor] | None = None) -> Tensor:
        memory = {} if memory is None else memory
        states: list[Tensor] = []
        with_hook = self.cell.register_forward_hook(lambda module, inputs, output: states.append(output.detach()))
        output = super().forward(ids, memory)
        with_hook.remove()
        memory["h"] = states[-2]
        return output


def another_state_of_the_twin(both: CheckedLearner, patch: pytest.MonkeyPatch) -> None:
    for other in both.others:
        patch.setattr(other.module, "__class__", HandsOnTheStateBefore)


class Forgets(ManualLearner):
    def apply(self, result: Any, lr: Tensor) -> None:
        kept = self.memory
        super().apply(result, lr)
        self.memory = kept


def no_memory(both: CheckedLearner, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(both.manual, "__class__", Forgets)


# The embedding of the ids has more rows than that of their places.
without_ids = partial(forgetting, gradient=0, use=lambda cache: len(cache[1]) > 8)
DE = "EM1 + MM2, wte, ∂C/∂E"


MISTAKES: dict[str, tuple[str, Spoil, str]] = {
    "BP4 transposed": ("mlp", model(TransposedInLayer2), "BP4, layer 2, ∂C/∂W"),
    "a mean over the batch": ("mlp", model(BiasGradientIsTheMean), "BP3, layer 3, ∂C/∂b"),
    "no σ′": ("mlp", model(SlopeForgottenInOutputLayer), "BP1, layer 3, δ"),
    "BP2 transposed": ("mlp", model(TransposedOnTheWayFromLayer3), "BP2, layer 2, ∂C/∂a"),
    "no gradient handed over": ("mlp", model(FirstLayerForgotten), "BP4, layer 1, ∂C/∂W"),
    "a cost without a gradient": ("mlp", of_cost(slice(None)), "∂C/∂output"),
    "a cost that forgets an example": ("mlp", of_cost(slice(0, 1)), "∂C/∂output"),
    "l1 of one side": ("mlp", rule("l1"), "the step's new layer1.weight"),
    "clip_norm of one side": ("mlp", rule("clip_norm"), "the step's new layer1.weight"),
    "clip_value of one side": ("mlp", rule("clip_value"), "the step's new layer1.weight"),
    "max_norm of one side": ("mlp", rule("max_norm"), "the step's new layer1.weight"),
    "l2 of biases": ("mlp", optimizer(BiasesDecay(0.9)), "the step's new layer1.bias"),
    "Lion's mean stays behind": ("mlp", optimizer(MeanStaysBehind()), "the step's new mean of layer1.weight"),
    "pooling sends it elsewhere": ("cnn", in_layer(max_pool2d, "backward", flipped), "MP1, stage 2 conv, δ"),
    "γ for β": ("cnn", in_layer(batch_norm, "backward", swapped), "BN1, stage 2 block 1 norm 2, ∂C/∂β"),
    "BN4 for BN3": ("cnn", in_layer(batch_norm, "backward", of_evaluation), "BN3, stage 2 block 1 conv 2, δ"),
    "variance of n": ("cnn", in_layer(batch_norm, "forward", with_n), "stage 1 norm, running_var"),
    "twice the momentum": ("cnn", in_layer(batch_norm, "forward", twice_as_fast), "stage 1 norm, running_mean"),
    "no way around": ("cnn", in_tape("add", only_through_the_block), "RS1, stage 2 norm, ∂C/∂a"),
    "a way around that is not forward's": (
        "cnn",
        in_tape("forward", without_a_way_around),
        "stage 1 block 1 norm 2, a",
    ),
    "an activation passed over": ("cnn", in_tape("backward", without_activation), "CV1, stage 2 block 1 norm 1, δ"),
    "softmax without its sum": ("block", in_layer(attention, "backward", without_the_sum_of_softmax), "AT1, q, δ"),
    "keys without the scale": ("block", in_layer(attention, "backward", keys_without_the_scale), "AT2, k, δ"),
    "dv through P": ("block", in_layer(attention, "backward", values_through_what_was_not_dropped), "AT3, v, δ"),
    "seeing ahead": ("block", in_layer(attention, "forward", seeing_ahead), "attention, z"),
    "the head's part of dE": ("block", in_layer(matmul, "backward", partial(forgetting, gradient=1)), DE),
    "the embedding's part of dE": ("block", in_layer(embedding, "backward", without_ids), DE),
    "a key bias that is declared": ("block", in_backward(a_little), "LI3, k, ∂C/∂b"),
    "one call's dW_h": ("cell", in_cell_where(carried=False, gradient=3), "RN4, cell, ∂C/∂W_h"),
    "the first call's dW_x": ("cell", in_cell_where(carried=True, gradient=2), "RN3, cell, ∂C/∂W_x"),
    "no way through time": ("cell", in_layer(recurrent_cell, "backward", stopped_in_time), "BT1, cell[5], δ"),
    "a twin that hands on another state": ("cell", another_state_of_the_twin, "h, memory"),
    "a learner that hands on nothing": ("cell", no_memory, "the step's new memory h"),
}
QUICK = ["pooling sends it elsewhere", "BN4 for BN3", "variance of n", "no way around"]  # of the CNN's, which take long


def is_slow(title: str, dtype: torch.dtype) -> bool:
    name = MISTAKES[title][0]
    return (name == "cnn" and title not in QUICK) or (name in ("cnn", "block") and dtype == torch.float32)


@pytest.mark.sweep(5)
@pytest.mark.parametrize(
    ("title", "dtype"),
    [
        pytest.param(title, dtype, marks=[pytest.mark.slow] * is_slow(title, dtype))
        for title in MISTAKES
        for dtype in (torch.float64, torch.float32)
    ],
    ids=str,
)
def test_a_mistake_is_named_with_its_equation_layer_and_tensor(
    title: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, spoil, place = MISTAKES[title]
    options = {} if name != "mlp" else LION if "Lion" in title else SQUARE
    error = stopped(learner(name, "both", dtype, **options), spoil, monkeypatch)
    assert re.match(rf"step 2: {re.escape(place)}: at \[", str(error)), error
    assert error.report.failures


# When a step is compared, and what a twin has to say


def test_every_nth_step_is_checked_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    both = learner("mlp", check_every=4, **SQUARE)
    model(TransposedInLayer2)(both, monkeypatch)
    advance(both, 3)
    assert both.steps == 3
    assert not both.metrics
    with pytest.raises(GradientMismatch, match=r"^step 4: BP4, layer 2"):
        advance(both, 2)


@pytest.mark.parametrize(("name", "call"), [("mlp", "layer1.a"), ("cell", "cell[]")])
def test_a_twin_that_does_not_observe_every_call_is_said_to(
    name: str, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left uncompared, the call could be wrong."""
    both = learner(name, "both")
    module = both.others[0].module
    observed = {name: part for name, part in module.observed().items() if name != call}
    monkeypatch.setattr(module, "observed", lambda: observed)
    alone = "a layer1" if name == "mlp" else "z cell[0]"
    with pytest.raises(
        UserError, match=rf"only one of the model and its twin has {re.escape(alone)}: the twin's observed\(\)"
    ):
        advance(both, 1)
