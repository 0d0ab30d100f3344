"""Dictionaries of gradients: every kind of wrong one is found, and what is right but for rounding passes."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from gradient_check import compare_gradients
from tests.support.checking import draw, first_failure

MILLION = 1_000_000


def accepts(actual, expected, **options):
    return compare_gradients({"v": actual}, {"v": expected}, **options).passed


def rejects(actual, expected, **options):
    """The reason with which `actual` is rejected."""
    return first_failure(compare_gradients({"v": actual}, {"v": expected}, **options)).reason


def test_equal_gradients_and_rounding_pass():
    report = compare_gradients({"v": draw(MILLION)}, {"v": draw(MILLION)})
    assert (report.passed, report.failures, report.max_relative_error) == (True, (), 0)
    assert accepts(draw(MILLION) * (1 + 4 * torch.finfo(torch.float64).eps), draw(MILLION))


@pytest.mark.sweep(4)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [3, 1000, MILLION])
def test_what_must_be_visible_is_visible_whatever_the_size(size, dtype):
    """0.1% of one element of root-mean-square size at float32, 1e-9 at float64; with a real reference's rounding."""
    truth, middle = draw(size, seed=size), size // 2
    truth[middle] = truth.norm() / size**0.5
    expected = (truth * (1 + 2 * torch.finfo(dtype).eps * draw(size, seed=5))).to(dtype)
    wrong = truth.clone()
    wrong[middle] *= 1 + (1e-3 if dtype == torch.float32 else 1e-9)
    assert accepts(truth.to(dtype), expected, truth={"v": truth})
    assert f"at [{middle}] it is" in rejects(wrong.to(dtype), expected, truth={"v": truth})


def test_the_message_names_the_place_both_values_and_the_sizes():
    actual, expected = torch.ones(2, 2, 3, dtype=torch.float64)
    actual[1, 2] = 3
    said = "at [1, 2] it is 3, expected 1; off by 8.16e-01 of the norm (allowed 1.0e-12)"
    assert rejects(actual, expected).startswith(f"{said}, here by 2.00e+00 of the root mean square")


WRONG = {
    "sign": (lambda g: -g, "off by 2.00e"),
    "transposed": (lambda g: g.T.contiguous(), "off by"),
    "zeros": (lambda g: torch.zeros_like(g), "off by 1.00e"),
    "dtype": (lambda g: g.float(), "its dtype is torch.float32, not torch.float64"),
    "a row": (lambda g: g[:1], "its shape is (1, 5), not (5, 5)"),
    "flat": (lambda g: g.flatten(), "its shape is (25,), not (5, 5)"),
    "device": (lambda g: g.to("meta"), "its device is meta, not cpu"),
    "a NaN": (lambda g: g.masked_fill(g == g[0, 0], torch.nan), "at [0, 0] it is nan"),
    "infinity": (lambda g: g.masked_fill(g == g[0, 0], torch.inf), "at [0, 0] it is inf"),
    "None": (lambda g: None, "no gradient was returned"),
    "everywhere by a little": (lambda g: g * (1 + 2e-12), "of the norm"),
}


@pytest.mark.parametrize(("wrong", "reason"), WRONG.values(), ids=WRONG)
def test_a_wrong_gradient_is_rejected_with_its_reason(wrong, reason):
    assert reason in rejects(wrong(draw(5, 5)), draw(5, 5))


def test_what_is_not_finite_or_of_another_shape_passes_not_even_where_both_are_equal():
    for value in (torch.nan, torch.inf):
        g = draw(5).index_fill(0, torch.tensor(2), value)
        assert "at [2]" in rejects(g, g.clone())
    zeros = torch.zeros(64, dtype=torch.float64)
    assert "shape" in rejects(zeros.view(64, 1), zeros)  # which torch.allclose broadcasts, and finds equal


def test_a_missing_and_a_superfluous_gradient_are_rejected():
    report = compare_gradients({"a": draw(3), "c": draw(3)}, {"a": draw(3), "b": draw(4)})
    said = [(row.name, row.reason) for row in report.rows]
    assert said == [("a", ""), ("b", "no gradient was returned"), ("c", "nothing to compare it with")]
    assert report.failures == report.rows[1:]


def test_nothing_is_shown_by_agreeing_with_zeros():
    zeros = torch.zeros(3, dtype=torch.float64)
    assert "expected 0" in rejects(torch.full_like(zeros, 1e-300), zeros, allow_trivial=True)
    assert rejects(zeros, zeros.clone()).startswith("nothing is shown")
    assert accepts(zeros, zeros.clone(), allow_trivial=True)


def test_in_lower_precision_the_truth_judges_and_a_few_times_the_references_own_error_is_allowed():
    truth, noise = draw(1000), draw(1000, seed=1)
    beside, off = {"truth": {"v": truth}}, lambda error: (truth * (1 + error * noise)).float()
    assert accepts(off(2e-5), off(2e-5), **beside)
    assert accepts(off(6e-5), off(2e-5), **beside)
    assert "off by" in rejects(off(12e-5), off(2e-5), **beside)
    assert "too badly conditioned to judge by" in rejects(off(0), off(1e-4), **beside)  # cannot show a thousandth
    assert accepts(off(0), off(1e-4), **beside, condition=1.01)
    assert accepts(off(0), off(0) * 1.00005, **beside)
    assert "off by" in rejects(off(0) * 1.00005, off(0), **beside)


def test_a_small_difference_of_large_summands_is_judged_by_their_declared_size():
    rounding, noise, g = 1e-16 * draw(7), 1e-16 * draw(7, seed=1), draw(100)
    assert "off by" in rejects(rounding, noise)
    assert accepts(rounding, noise, zeros={"v": 1.0})
    assert "off by" in rejects(1e-9 * draw(7), noise, zeros={"v": 1.0})
    assert "off by" in rejects(g * (1 + 1e-9), g)
    assert accepts(g * (1 + 1e-9), g, condition=1e6)


def test_labels_name_the_rows_of_the_report():
    given = {"w": draw(3), "b": -draw(3)}, {"w": draw(3), "b": draw(3)}
    report = compare_gradients(*given, labels={"b": "BP3, layer 1, ∂C/∂b"})
    lines = str(report).splitlines()
    assert re.match(r"BP3, layer 1, ∂C/∂b +3 +2\.00e\+00 of +1\.0e-12  WRONG$", lines[0])
    assert (lines[2][:8], lines[-1]) == ("    at [", "ok: w")
    assert any(line.startswith("    diagnosis: the sign is wrong") for line in lines)
    with pytest.raises(AssertionError, match="BP3, layer 1"):
        report.assert_passed()


def test_arrays_state_dicts_and_integers_are_compared():
    state = nn.BatchNorm1d(3).double().state_dict()
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    compare_gradients(arrays, state, allow_trivial=True).assert_passed()
    report = compare_gradients({**arrays, "num_batches_tracked": np.array(3)}, state, allow_trivial=True)
    assert report.failures[0].reason == "1 of 1 differ; at [] it is 3, expected 0"
