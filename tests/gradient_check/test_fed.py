"""Mistakes that show in what the check feeds beside the example, or that lie in forward."""

import pytest
import torch

from gradient_check import check_backward, check_function
from tests.support.checking import draw, first_failure


def tanh(z):
    return torch.tanh(z), torch.tanh(z)


def tanh_backward(da, a):
    return da * (1 - a * a)


def test_a_forward_that_writes_to_its_argument_is_rejected():
    def forward(z):
        a = torch.tanh(z)
        if torch.is_inference_mode_enabled():
            z.add_(1)
        return a, a

    failure = check_backward(forward, tanh_backward, [draw(3, 4)]).failures[-1]
    assert (failure.name, failure.reason) == ("pure", "an argument, an output or the cotangent was written to")


def test_a_backward_that_leans_on_autograd_is_rejected():
    def forward(z):
        z = z.detach().requires_grad_()
        return torch.tanh(z), (z, torch.tanh(z))

    def backward(da, cache):
        z, a = cache
        return torch.autograd.grad(a, z, da)[0]

    row = check_backward(forward, backward, [draw(3, 4)]).failures[0]
    assert row.diagnosis.kind == "raised"
    assert "RuntimeError" in row.reason


def test_repeated_ids_find_a_scatter_that_forgets_to_add():
    def forward(x, ids):
        return x[ids], (x, ids)

    def backward(dy, cache):
        x, ids = cache
        dx = torch.zeros_like(x)
        dx[ids] += dy
        return dx

    distinct = [draw(4), torch.tensor([0, 1, 3])]
    assert check_backward(forward, backward, distinct, cases=[]).passed
    row = check_backward(forward, backward, distinct).failures[0]
    assert (row.case, row.diagnosis.kind) == ("ids repeated", "repeated indices")
    assert not check_backward(forward, backward, [draw(4), torch.tensor([0, 1, 1])], cases=[]).passed


def test_writing_to_an_input_is_found_in_a_function_too():
    class Negate(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.mark_dirty()
            x.neg_()
            return x.clone()

        @staticmethod
        def backward(ctx, dy):
            return -dy

    report = check_function(lambda x: Negate.apply(x), [draw(5, 3)])
    assert "in place" in {row.diagnosis.kind for row in report.failures if row.diagnosis}


def test_noise_that_is_drawn_inside_is_found():
    def forward(x):
        mask = (torch.rand(x.shape) < 0.5).to(x)
        return x * mask, mask

    report = check_backward(forward, lambda dy, mask: dy * mask, [draw(8, 9)], oracles=["differences"])
    assert not report.passed


def test_clipping_inside_of_a_backward_is_not_linear():
    def backward(da, a):
        return (da * (1 - a * a)) * 1.0 if da.abs().max() < 4 else da.clamp(-1, 1) * (1 - a * a)

    big = [draw(50, 40)]
    report = check_backward(tanh, backward, big, oracles=["dot product"])
    assert not report.passed


def test_a_wrong_forward_with_its_own_right_derivative_needs_the_reference():
    def forward(z):
        return 2 * torch.sigmoid(z), torch.sigmoid(z)

    def backward(da, a):
        return 2 * da * a * (1 - a)

    z = [draw(5, 3)]
    check_backward(forward, backward, z, cases=[]).assert_passed()
    row = first_failure(check_backward(forward, backward, z, reference=torch.sigmoid, cases=[]))
    assert (row.name, row.oracle) == ("output", "reference")
    assert row.reason.startswith("forward is wrong: at [")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lower_precision_without_an_oracle_is_judged_by_its_own_float64(dtype):
    """And quickly: differences look at float64 only."""

    class Linear(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, W):
            ctx.save_for_backward(x, W)
            return x @ W.T

        @staticmethod
        def backward(ctx, dz):
            x, W = ctx.saved_tensors
            dW = dz.T @ x
            if dz.dtype != torch.float64:
                dW[17, 23] += factor * dW.norm() / 40
            return dz @ W, dW

    example = [draw(30, 40), draw(40, 40, seed=1)]
    factor = 0.0
    report = check_function(Linear.apply, example, dtypes=[dtype])
    report.assert_passed()
    assert not report.kinks
    factor = 1.0
    row = first_failure(check_function(Linear.apply, example, dtypes=[dtype]))
    assert (row.name, row.index) == ("dW", (17, 23))
    assert row.origin.startswith("beside its float64, which differences confirm")


def test_16_bits_do_not_let_a_gradient_of_zeros_pass():
    x = 3 + 0.01 * draw(50)
    report = check_backward(lambda x: (x.var(), x), lambda d, x: 0 * x, [x], dtypes=["bfloat16"], oracles=["autograd"])
    assert not report.passed


def test_a_layout_that_gives_garbage_is_not_excused_as_rounding():
    """As torch 2.15's batch norm on a CPU, whose backward reads an expanded weight as if it were contiguous."""

    class Scale(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w):
            ctx.save_for_backward(x, w)
            return x * w

        @staticmethod
        def backward(ctx, dy):
            x, w = ctx.saved_tensors
            garbage = w if w.is_contiguous() else w + 5
            return dy * garbage, (dy * x).sum(dim=0)

    report = check_function(Scale.apply, [draw(6, 5), draw(5, seed=1)])
    assert {(row.case, row.name) for row in report.failures} >= {("w expanded", "dx"), ("inputs sliced", "dx")}
    assert {row.diagnosis.kind for row in report.failures} == {"strided"}


def test_a_steep_forward_is_no_kink_where_autograd_has_its_slope():
    x = 1e-11 * (draw(5, 6).abs() + 0.1)
    row = first_failure(check_backward(lambda x: (x.log(), x), lambda dy, x: 7 * dy / x, [x], cases=[]))
    assert (row.oracle, row.diagnosis.kind) == ("autograd", "factor")
