"""Who is believed: exact answers where forward is smooth, both slopes at a kink, what the caller declares."""

import pytest
import torch
from torch.nn import functional as F

from gallery.right.surrogates import TRUNCATED, Rounded, clipped, stairs, straight_through, truncated_lstm
from gradient_check import check_backward, check_function
from tests.support.checking import draw, first_failure, function_of


def test_a_reference_is_final_where_forward_is_smooth():
    pair = (lambda x: (stairs(x), None)), (lambda dy, cache: dy / 4)
    check_backward(*pair, [3 * draw(6)]).assert_passed()
    row = first_failure(check_backward(*pair, [3 * draw(6)], reference=straight_through))
    assert (row.oracle, row.verdict, row.kinks) == ("reference", "WRONG", 0)


def test_an_oracle_that_surer_ones_contradict_a_little_is_inconclusive():
    hard = function_of(lambda x: (F.hardsigmoid(x), x), lambda dy, x: dy * (x.abs() < 3) / 6)
    report = check_function(hard, [draw(5, 4)], reference=F.hardsigmoid, cases=[])
    row = first_failure(report)
    assert (row.verdict, report.passed, report.exit_status) == ("inconclusive", False, 2)
    assert "the oracles disagree" in row.reason
    off = function_of(lambda x: (F.hardsigmoid(x), x), lambda dy, x: dy * (x.abs() < 3) / 6.0001)
    assert first_failure(check_function(off, [draw(5, 4)], reference=F.hardsigmoid)).verdict == "WRONG"


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_what_each_of_a_tie_may_claim_they_may_not_claim_together(share):
    x = torch.tensor([[1.0, 1.0, 0.0], [2.0, 3.0, 3.0]], dtype=torch.float64)
    backward = lambda dy, x: share * dy[:, None] * (x == x.amax(-1, keepdim=True))  # noqa: E731
    report = check_backward(lambda x: (x.amax(-1), x), backward, [x], cases=[], reference=lambda x: x.max(-1).values)
    assert (first_failure(report).name, "a tie was not shared out" in str(report)) == ("ties", True)


def test_a_declared_gradient_is_held_against_what_is_intended():
    report = check_function(Rounded.apply, [draw(6, 5), 1.0], intended=clipped)
    report.assert_passed()
    assert "which is not the derivative" in str(report)
    assert {row.oracle for row in report.rows} == {"declared", ""}
    row = first_failure(check_function(Rounded.apply, [draw(6, 5), -1.0], intended=clipped))
    assert (row.oracle, row.diagnosis.kind) == ("declared", "sign")
    assert "declare a gradient that is meant with `intended`" in str(check_function(Rounded.apply, [draw(6, 5), 1.0]))


def test_an_lstm_that_is_truncated_is_right_where_that_is_declared():
    check_backward(*TRUNCATED, outputs=3, intended=truncated_lstm, cases=[]).assert_passed()


def test_what_the_caller_allows_is_printed_with_its_reason():
    pair = (lambda x: (x.sin(), x)), (lambda dy, x: 1.0000001 * dy * x.cos())
    assert not check_backward(*pair, [draw(5, 4)]).passed
    report = check_backward(*pair, [draw(5, 4)], tolerance=1e-6, because="cosines come from a table")
    report.assert_passed()
    assert "errors up to 1e-06 of the norm pass, because cosines come from a table" in str(report)


@pytest.mark.slow
def test_a_random_order_of_summation_is_no_mistake_and_more_is_declared():
    def forward(x, W):
        order = torch.randperm(len(W))
        return (x[:, order] @ W[order]).exp(), (x, W)

    def backward(dy, cache):
        x, W = cache
        dz = dy * forward(x, W)[0] * (1 + noise * torch.randn(()))
        return dz @ W.T, x.T @ dz

    noise, example = 0.0, [draw(33, 40).float() / 8, draw(40, 6, seed=1).float() / 8]
    check_backward(forward, backward, example, cases=[]).assert_passed()
    noise = 1e-5
    assert not check_backward(forward, backward, example, cases=[]).passed
    report = check_backward(forward, backward, example, cases=[], nondeterministic=1e-4)
    report.assert_passed()
    assert "declared as nondeterministic" in str(report)


@pytest.mark.slow
def test_an_elementwise_function_is_checked_in_chunks():
    silu = function_of(lambda x: (F.silu(x), x), lambda dy, x: dy * x.sigmoid() * (1 + x * (1 - x.sigmoid())))
    report = check_function(silu, [draw(11, 100_000).float()], reference=F.silu, elementwise=True, cases=[])
    report.assert_passed()
    assert ("in 2 chunks" in str(report), report.rows[0].shape) == (True, (11, 100_000))

    def spoilt(dy, x):
        dx = dy * x.cos()
        return torch.where(x == marked, 2 * dx, dx)

    x = draw(11, 100_000)
    marked = x[10, 99_997].item()
    row = first_failure(check_backward(lambda x: (x.sin(), x), spoilt, [x], elementwise=True, cases=[]))
    assert (row.index, "at [10, 99997] it is" in row.reason) == ((10, 99_997), True)


def test_a_large_example_is_judged_by_an_exact_oracle_alone():
    x = draw(2_000_001).float()
    report = check_backward(lambda x: (x.sin(), x), lambda dy, x: dy * x.cos(), [x])
    report.assert_passed()
    assert {row.name for row in report.rows} == {"dx", "pure", "linear"}
    assert [word in str(report) for word in ("differences and dot product were not asked", "edge cases were skipped")]
