"""Dictionaries of gradients: every kind of wrong one is found, and what is right but for rounding passes."""

import re
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradient_check import compare_gradients
from manual_backprop.layers.activations import ACTIVATIONS
from tests.support.checking import draw

MILLION = 1_000_000


ONE = draw(1)


def rejects(actual: Tensor, expected: Tensor, **options) -> str:
    """The reason with which `actual` is rejected."""
    report = compare_gradients({"v": actual}, {"v": expected}, **options)
    assert not report.passed
    return report.failures[0].reason


def test_equal_gradients_and_rounding_pass():
    report = compare_gradients({"v": draw(MILLION)}, {"v": draw(MILLION)})
    report.assert_passed()
    assert report.failures == ()
    assert report.max_relative_error == 0
    rounded = draw(MILLION) * (1 + 4 * torch.finfo(torch.float64).eps)
    assert compare_gradients({"v": rounded}, {"v": draw(MILLION)}).passed


@pytest.mark.sweep(4)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [3, 1000, MILLION])
def test_what_must_be_visible_is_visible_whatever_the_size(size, dtype):
    """0.1% of one element of root-mean-square size at float32, 1e-9 at float64; with a real reference's rounding."""
    error = 1e-3 if dtype == torch.float32 else 1e-9
    truth = draw(size, seed=size)
    truth[size // 2] = truth.norm() / size**0.5
    expected = (truth * (1 + 2 * torch.finfo(dtype).eps * draw(size, seed=5))).to(dtype)
    wrong = truth.clone()
    wrong[size // 2] *= 1 + error
    assert compare_gradients({"v": truth.to(dtype)}, {"v": expected}, truth={"v": truth}).passed
    assert f"at [{size // 2}] it is" in rejects(wrong.to(dtype), expected, truth={"v": truth})


def test_an_error_spread_over_all_elements_is_found():
    g = draw(1000)
    assert "of the norm" in rejects(g * (1 + 2e-12), g)


def test_the_message_names_the_place_both_values_and_the_sizes():
    actual, expected = torch.ones(2, 3, dtype=torch.float64), torch.ones(2, 3, dtype=torch.float64)
    actual[1, 2] = 3
    reason = rejects(actual, expected)
    assert reason.startswith("at [1, 2] it is 3, expected 1; off by 8.16e-01 of the norm (allowed 1.0e-12)")
    assert "by 2.00e+00 of the root mean square" in reason


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (lambda g: -g, "off by 2.00e"),
        (lambda g: g.T.contiguous(), "off by"),
        (lambda g: torch.zeros_like(g), "off by 1.00e"),
        (lambda g: 2 * g, "off by 1.00e"),
        (lambda g: g.float(), "its dtype is torch.float32, not torch.float64"),
        (lambda g: g[:1], "its shape is (1, 5), not (5, 5)"),
        (lambda g: g.flatten(), "its shape is (25,), not (5, 5)"),
        (lambda g: g.to("meta"), "its device is meta, not cpu"),
        (lambda g: g.masked_fill(g == g[0, 0], torch.nan), "at [0, 0] it is nan"),
        (lambda g: g.masked_fill(g == g[0, 0], torch.inf), "at [0, 0] it is inf"),
        (lambda g: None, "no gradient was returned"),
    ],
    ids=["sign", "transposed", "zeros", "twice", "dtype", "a row", "flat", "device", "a NaN", "infinity", "None"],
)  # fmt: skip
def test_a_wrong_gradient_is_rejected_with_its_reason(wrong, reason):
    g = draw(25).view(5, 5)
    assert reason in rejects(wrong(g), g)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_another_activations_derivative_is_rejected(name):
    z = draw(12).requires_grad_()
    a = ACTIVATIONS[name].value(z)
    (expected,) = torch.autograd.grad(a.sum(), z)
    for other in ACTIVATIONS.keys() - {name}:
        wrong = ACTIVATIONS[other].derivative(z.detach(), a.detach())
        report = compare_gradients({"dz": wrong}, {"dz": expected}, allow_trivial=True)
        assert not report.passed, other


def test_a_column_is_not_a_vector_even_where_both_are_zero():
    zeros = torch.zeros(64, dtype=torch.float64)
    assert torch.allclose(zeros, zeros.view(64, 1))  # which broadcasts
    assert "shape" in rejects(zeros.view(64, 1), zeros)


@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
def test_what_is_not_finite_passes_not_even_where_both_have_it(value):
    g = draw(5)
    g[2] = value
    assert "at [2]" in rejects(g, g.clone())


def test_a_missing_and_a_superfluous_gradient_are_rejected():
    report = compare_gradients({"a": draw(3), "c": draw(3)}, {"a": draw(3), "b": draw(4)})
    assert [(row.name, row.reason) for row in report.failures] == [
        ("b", "no gradient was returned"),
        ("c", "nothing to compare it with"),
    ]
    assert [row.name for row in report.rows] == ["a", "b", "c"]


def test_nothing_is_shown_by_agreeing_with_zeros():
    zeros = torch.zeros(3, dtype=torch.float64)
    assert "expected 0" in rejects(torch.full_like(zeros, 1e-300), zeros, allow_trivial=True)
    assert rejects(zeros, zeros.clone()).startswith("nothing is shown")
    assert compare_gradients({"v": zeros}, {"v": zeros.clone()}, allow_trivial=True).passed


def test_in_lower_precision_the_error_allowed_is_a_small_multiple_of_the_references_own():
    truth = draw(1000)
    noise = draw(1000, seed=1)
    expected = (truth * (1 + 2e-5 * noise)).float()

    def passes(error: float) -> bool:
        actual = (truth * (1 + error * noise)).float()
        return compare_gradients({"v": actual}, {"v": expected}, truth={"v": truth}).passed

    assert passes(2e-5)
    assert passes(6e-5)
    assert not passes(12e-5)


def test_a_reference_too_inexact_to_show_a_thousandth_is_no_reference():
    truth = draw(1000)
    expected = (truth * (1 + 1e-4 * draw(1000, seed=1))).float()
    assert "too badly conditioned to judge by" in rejects(truth.float(), expected, truth={"v": truth})
    assert compare_gradients({"v": truth.float()}, {"v": expected}, truth={"v": truth}, condition=1.01).passed


def test_a_single_precision_gradient_is_judged_against_the_truth_and_not_against_the_reference():
    truth = draw(1000)
    wrong = truth.float() * 1.00005
    assert compare_gradients({"v": truth.float()}, {"v": wrong}, truth={"v": truth}).passed
    assert "off by" in rejects(wrong, truth.float(), truth={"v": truth})


def test_a_zero_that_is_declared_is_judged_against_its_summands():
    rounding, noise = 1e-16 * draw(7), 1e-16 * draw(7, seed=1)
    assert "off by" in rejects(rounding, noise)
    assert compare_gradients({"v": rounding}, {"v": noise}, zeros={"v": 1.0}).passed
    assert "off by" in rejects(1e-9 * draw(7), noise, zeros={"v": 1.0})


def test_condition_widens_the_limit_where_a_gradient_is_a_small_difference():
    g = draw(100)
    assert "off by" in rejects(g * (1 + 1e-9), g)
    assert compare_gradients({"v": g * (1 + 1e-9)}, {"v": g}, condition=1e6).passed


def test_labels_name_the_rows_of_the_report():
    report = compare_gradients(
        {"w": draw(3), "b": -draw(3)},
        {"w": draw(3), "b": draw(3)},
        labels={"b": "BP3, layer 1, ∂C/∂b"},
    )
    lines = str(report).splitlines()
    assert re.match(r"BP3, layer 1, ∂C/∂b +3 +2\.00e\+00 of +1\.0e-12  WRONG$", lines[0])
    assert lines[2].startswith("    at [")
    assert any(line.startswith("    diagnosis: the sign is wrong") for line in lines)
    assert lines[-1] == "ok: w"
    with pytest.raises(AssertionError, match="BP3, layer 1"):
        report.assert_passed()


def test_arrays_state_dicts_and_integers_are_compared():
    module = nn.BatchNorm1d(3).double()
    state = module.state_dict()
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    compare_gradients(arrays, state, allow_trivial=True).assert_passed()
    arrays["num_batches_tracked"] = np.int64(3)
    report = compare_gradients({**arrays, "num_batches_tracked": np.array(3)}, state, allow_trivial=True)
    assert report.failures[0].reason == "1 of 1 differ; at [] it is 3, expected 0"


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (partial(compare_gradients, {}, {}), "nothing to compare"),
        (partial(compare_gradients, {"v": [1.0]}, {"v": ONE}), "actual v is a list: give a tensor"),
        (partial(compare_gradients, {"v": np.array(["a"])}, {"v": ONE}), "actual v is an array of"),
        (partial(compare_gradients, [ONE], {"v": ONE}), "actual is a list: give a dictionary by name"),
        (partial(compare_gradients, {"v": ONE}, {"v": ONE}, zeros=["v"]), "zeros is a list: give a dictionary"),
        (partial(compare_gradients, {"v": ONE}, {"v": ONE}, condition="x"), "condition is 'x': give a finite"),
        (partial(compare_gradients, {"v": ONE}, {"v": ONE}, condition=0.1), "condition is 0.1: give a finite"),
        (partial(compare_gradients, {"v": ONE}, {"v": ONE}, truth={"v": ONE[:0]}), "the truth of v is of shape"),
        *(
            (
                partial(compare_gradients, {"v": ONE.to(dtype)}, {"v": ONE.to(dtype)}),
                f"v is {dtype}: give `truth`, the same gradient computed in float64",
            )
            for dtype in (torch.float32, torch.bfloat16, torch.float16)
        ),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_bad_input_gets_one_clear_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)
