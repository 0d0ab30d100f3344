"""Mistakes that show in what the check feeds beside the example, or that lie in forward."""

import pytest
import torch

from gallery.affine import LINEAR
from gradient_check import check_backward, check_function

EXAMPLE = LINEAR.arguments(0)
linear, linear_backward = LINEAR.forward, LINEAR.backward


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tanh(z):
    return torch.tanh(z), torch.tanh(z)


def first_failure(report):
    assert not report.passed
    return report.failures[0]


def test_a_forward_that_writes_to_its_argument_is_rejected():
    def forward(z):
        a = torch.tanh(z)
        if torch.is_inference_mode_enabled():
            z.add_(1)
        return a, a

    failure = check_backward(forward, lambda da, a: da * (1 - a * a), [draw(3, 4)]).failures[-1]
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
    check_backward(forward, backward, z).assert_passed()
    row = first_failure(check_backward(forward, backward, z, reference=torch.sigmoid))
    assert (row.name, row.oracle) == ("output", "reference")
    assert row.reason.startswith("forward is wrong: at [")


@pytest.mark.parametrize(
    "spoil",
    [lambda dz: dz.clamp(-100, 100), lambda dz: torch.where(dz.abs() < 1e-6, 0, dz)],
    ids=["clamped", "flushed"],
)
def test_cotangents_of_all_sizes_are_fed(spoil):
    row = first_failure(check_backward(linear, lambda dz, cache: linear_backward(spoil(dz), cache), EXAMPLE))
    assert (row.name, row.diagnosis.kind) == ("linear", "not linear")


def test_a_buffer_that_is_returned_and_written_over_is_found():
    buffer = torch.empty(7, 5, dtype=torch.float64)

    def backward(dz, cache):
        x, W = cache
        return torch.mm(dz, W, out=buffer) if len(x) == 7 else dz @ W, dz.T @ x, dz.sum(dim=0)

    row = first_failure(check_backward(linear, backward, EXAMPLE))
    assert (row.name, "wrote over the gradients" in row.reason) == ("linear", True)


@pytest.mark.parametrize(
    ("misread", "dim"),
    [
        (lambda da: da.stride(1) == 1 and not da.is_contiguous(), 1),
        (lambda da: da.stride(1) < da.stride(2), 2),
    ],
    ids=["images", "attention"],
)
def test_layouts_of_images_and_of_attention_are_fed(misread, dim):
    def backward(da, a):
        return (da.flip(dim) if misread(da) else da) * (1 - a * a)

    report = check_backward(tanh, backward, [draw(2, 3, 4, 5)], cases=["layouts"])
    assert {row.diagnosis.kind for row in report.failures} == {"strided"}


def test_slopes_between_the_ordinary_and_the_huge_are_fed():
    def backward(da, z):
        return da * torch.where((z > 5) & (z < 50), 0.0, 1.0)

    row = first_failure(check_backward(lambda z: (z * 1.0, z), backward, [draw(9, 8)]))
    assert row.case == "z of all sizes"


def test_a_lost_remainder_of_the_batch_is_found():
    def backward(dz, cache):  # in pieces of four
        x, W = cache
        whole = len(x) // 4 * 4
        return dz @ W, dz[:whole].T @ x[:whole], dz.sum(dim=0)

    row = first_failure(check_backward(linear, backward, [draw(8, 5), *EXAMPLE[1:]]))
    assert (row.case, row.name) == ("one example less", "dW")


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
