"""`check_function` on autograd Functions and modules, and `check_step` on two implementations of a step."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable

import gradient_check
from gallery.affine import LINEAR
from gallery.functions import Cube, Powers, SecondForgotten
from gallery.right.steps import BATCH, Net, by_hand
from gradient_check import Step, check_backward, check_function, check_step
from tests.support.checking import MISTAKES, draw, first_failure, function_of

EXAMPLE = LINEAR.arguments(0)
X, _, B = EXAMPLE


def square(factor=2.0):
    """scale · x², with a right backward where the factor is 2."""
    return function_of(lambda x, c: (c * x * x, (x, c)), lambda dy, cache: (factor * cache[1] * cache[0] * dy, None))


def test_an_autograd_function_with_and_without_a_reference():
    example, reference = [draw(5, 3), 1.5], lambda x, scale: scale * x**2
    report = check_function(square(), example)
    report.assert_passed()
    assert not any("forward mode" in note or "jvp" in note for note in report.notes)  # most functions have none
    report = check_function(square(), example, reference=reference)
    report.assert_passed()
    assert [row.oracle for row in report.rows if row.name == "dx" and not row.case] == ["reference"]
    assert first_failure(check_function(square(1.0), example)).oracle == "differences"
    assert first_failure(check_function(square(1.0), example, reference=reference)).diagnosis.kind == "factor"


def test_a_function_that_writes_to_its_input_is_found():
    writes = function_of(lambda x: (x.add_(1).sin(), x.cos()), lambda dy, slope: dy * slope)
    failures = check_function(writes, [draw(5, 3)]).failures
    assert [row.diagnosis.kind for row in failures if row.name == "pure"] == ["in place"]


def test_differences_that_are_lost_in_the_rounding_of_forward_show_nothing():
    row = first_failure(check_function(lambda x: square(6.0)(x, 1.0) + 1e12, [draw(5, 3)], cases=[]))
    assert row.reason.startswith("nothing is shown: forward is too steep, or its values too large")


def test_outputs_may_be_nested_and_left_out_or_without_a_gradient():
    check_function(nn.LSTM(3, 2).double(), [draw(4, 5, 3)], cases=[]).assert_passed()
    assert not check_function(lambda x: (x.sin(), None, {"y": x * x.detach()}), [draw(3)], cases=[]).passed
    check_function(lambda x: (x * x, x.detach()), [draw(5, 3)]).assert_passed()


def test_arguments_may_be_of_several_precisions_and_a_numpy_scalar_is_a_number():
    check_function(lambda x, y: x.double() * y, [draw(3).float(), draw(3, seed=1)], cases=[]).assert_passed()
    report = check_function(square(), [draw(5, 3), np.float64(1.5)], cases=[])
    report.assert_passed()
    assert [row.name for row in report.rows if row.oracle] == ["dx"]


def test_every_output_is_fed_alone():
    check_function(Powers.apply, [X]).assert_passed()
    row = first_failure(check_function(SecondForgotten.apply, [X]))
    assert row.name == "linear"
    assert row.reason.startswith("dx is not linear in the cotangent: for the outputs one by one it is off by ")


def test_sparse_gradients_are_their_dense_values_in_a_pair_and_in_a_module_too():
    ids, table = torch.tensor([0, 5, 2, 5]), draw(6, 4)
    sparse = lambda dy, _: torch.sparse_coo_tensor(ids[None], dy, table.shape, check_invariants=False)  # noqa: E731
    check_backward(lambda W: (W[ids], None), sparse, [table], cases=["layouts"]).assert_passed()
    twice = check_backward(lambda W: (W[ids], None), lambda dy, _: 2 * sparse(dy, _), [table], cases=[])
    assert first_failure(twice).diagnosis.kind == "factor"
    check_function(nn.Embedding(6, 4, sparse=True).double(), [ids], reference=lambda i, W: W[i]).assert_passed()


@pytest.mark.parametrize("reference", [None, lambda x: x**3], ids=["by differences", "by the reference"])
def test_a_second_derivative_is_right_or_refused_by_torch(reference):
    report = check_function(Cube.apply, [X], reference=reference, order=2, dtypes=["float64", "bfloat16"])
    report.assert_passed()
    assert {"d²x", "d²cotangent"} <= {row.name for row in report.rows if row.case == "second derivative"}
    check_function(nn.Sequential(nn.Linear(5, 2), nn.Tanh()).double(), [X], order=2, cases=[]).assert_passed()
    once = function_of(lambda x: (x**3, x), once_differentiable(lambda dy, x: 3 * x * x * dy))
    row = first_failure(check_function(once, [X], reference=reference, order=2, cases=[]))
    assert (row.diagnosis.kind, "with @once_differentiable" in row.reason) == ("second derivative", True)


def test_two_implementations_of_a_step():
    report = check_step(by_hand, Net(), BATCH)
    report.assert_passed()
    assert [row.name for row in report.rows] == ["layer", "loss", "δ layer", "dlayer.weight", "dlayer.bias"]
    row = first_failure(check_step(partial(by_hand, scale=2.0), Net(), BATCH))
    assert (row.name, row.diagnosis.kind) == ("δ layer", "factor")


def test_intermediates_of_one_side_only_are_noted_and_a_missing_gradient_fails():
    def without(x, y):
        made = by_hand(x, y)
        return Step(made.loss, {"layer.weight": made.gradients["layer.weight"]}, {"mine": x})

    report = check_step(without, Net(), BATCH)
    assert [(row.name, row.diagnosis.kind) for row in report.failures] == [("dlayer.bias", "missing")]
    assert report.notes == ("only step_a has mine: not compared", "only step_b has layer, δ layer: not compared")
    assert first_failure(check_step(Net(), without, BATCH)).name == "dlayer.bias"


def test_a_step_in_single_precision_is_judged_by_one_in_double():
    batch = [v.float() for v in BATCH]
    a, b, truth = (Net().float() for _ in range(3))
    check_step(a, b, batch, truth=truth.double()).assert_passed()
    with pytest.raises(ValueError, match="give `truth`"):
        check_step(a, a, batch)


ASSERTED = {
    "backward": lambda: gradient_check.assert_backward(*MISTAKES["weight: sign"].pair(right=False), EXAMPLE),
    "function": lambda: gradient_check.assert_function(square(1.0), [draw(5), 1.0]),
    "gradients": lambda: gradient_check.assert_gradients({"db": -B}, {"db": B}),
    "step": lambda: gradient_check.assert_step(partial(by_hand, scale=-1.0), Net(), BATCH),
}


@pytest.mark.parametrize("form", ASSERTED.values(), ids=ASSERTED)
def test_the_assert_forms_hold_the_report(form):
    gradient_check.assert_backward(LINEAR.forward, LINEAR.backward, EXAMPLE, cases=[])
    with pytest.raises(AssertionError, match="WRONG"):
        form()


@pytest.mark.parametrize("seed", [0, 5, None])
def test_check_step_leaves_the_random_state_of_its_caller(seed):
    """And with None it does not even set one for the two."""
    torch.manual_seed(7)
    drawn = []

    def step():
        drawn.append(torch.rand(()).item())
        return Step(torch.tensor(drawn[-1], dtype=torch.float64), {})

    passed = check_step(step, step, (), seed=seed).passed
    after = torch.rand(()).item()
    torch.manual_seed(7)
    expected = [torch.rand(()).item() for _ in range(3)]
    assert passed == (drawn[0] == drawn[1]) == (seed is not None)
    assert [*drawn, after] == expected if seed is None else after == expected[0]
