"""Lock step over every family: who is wrong is stopped at the first wrong step, which is not taken, and named."""

import re

import pytest
import torch

from gallery.steps import STEPS, AllMoved, in_backward, last_gradient_off, optimizer
from tests.support.lockstep import NAMES, advance, learner
from tests.support.running import assert_same
from training.errors import UserError
from training.learners.checked import GradientMismatch

DTYPES = [torch.float64, torch.float32]
QUICK = ["pooling sends it elsewhere", "BN4 for BN3", "variance of n", "no way around"]  # of the CNN's, which take long
each_family = pytest.mark.parametrize("name", NAMES)


def stopped(both, spoil, monkeypatch):
    """After a right step the next is wrong: what is raised there. The learner is as it was before that step."""
    advance(both, 1)
    before = both.state_dict()
    with monkeypatch.context() as patch:
        spoil(both, patch)
        with pytest.raises(GradientMismatch) as caught:
            advance(both, 2)
    assert caught.value.step == 2
    assert both.proof.after(1).startswith("1 of 1 steps agree; ")
    assert_same(both.state_dict(), before)
    return caught.value


@pytest.mark.sweep(4)
@pytest.mark.parametrize("dtype", [DTYPES[0], pytest.param(DTYPES[1], marks=pytest.mark.slow)], ids=str)
@each_family
def test_a_gradient_that_is_off_is_named(name, dtype, monkeypatch):
    both = learner(name, "both", dtype)
    error = stopped(both, in_backward(last_gradient_off), monkeypatch)
    assert [row.name for row in error.report.failures] == [f"d{list(both.manual.model.shapes)[-1]}"]


@pytest.mark.sweep(4)
@each_family
def test_a_wrong_step_is_named_and_undone(name, monkeypatch):
    """And the learner can go on from there."""
    both = learner(name, "both")
    error = stopped(both, optimizer(AllMoved(both.manual.optimizer)), monkeypatch)
    assert str(error).startswith(f"step 2: the step's new {next(iter(both.manual.model.shapes))}: ")
    advance(both, 1)
    assert both.proof.steps == 2


def is_slow(wrong, dtype):
    return (wrong.family == "cnn" and wrong.title not in QUICK) or (
        wrong.family in ("cnn", "block") and dtype == torch.float32
    )


@pytest.mark.sweep(5)
@pytest.mark.parametrize(
    ("wrong", "dtype"),
    [
        pytest.param(wrong, dtype, marks=[pytest.mark.slow] * is_slow(wrong, dtype), id=f"{wrong.title}-{dtype}")
        for wrong in STEPS
        for dtype in DTYPES
    ],
)
def test_a_mistake_is_named_with_its_equation_layer_and_tensor(wrong, dtype, monkeypatch):
    error = stopped(learner(wrong.family, "both", dtype, **wrong.options), wrong.spoil, monkeypatch)
    assert re.match(rf"step 2: {re.escape(wrong.place)}: ", str(error)), error
    assert error.report.failures


@pytest.mark.parametrize(("name", "call", "alone"), [("mlp", "layer1.a", "a layer1"), ("cell", "cell[]", "z cell[0]")])
def test_a_twin_that_does_not_observe_every_call_is_said_to(name, call, alone, monkeypatch):
    """Left uncompared, the call could be wrong."""
    both = learner(name, "both")
    module = both.others[0].module
    observed = {name: part for name, part in module.observed().items() if name != call}
    monkeypatch.setattr(module, "observed", lambda: observed)
    said = rf"only one of the model and its twin has {re.escape(alone)}: the twin's observed\(\)"
    with pytest.raises(UserError, match=said):
        advance(both, 1)
