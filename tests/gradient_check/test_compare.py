"""The gradient check can fail: every kind of wrong gradient is found, and by the right row."""

import re
from itertools import islice

import pytest
import torch
from torch import Tensor

from gradient_check import central_differences, check_backward, compare_gradients, directional_derivative
from manual_backprop.layers.activations import ACTIVATIONS, Activation
from tests.support.both_ways import LOSSES, by_autograd, by_hand, differ, random_batch, random_parameters
from tests.support.wrong_mlps import WRONG, SpelledMLP

MILLION = 1_000_000
TYPICAL = 123_456  # the index of the element that is spoilt


def gradient(size: int = MILLION, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rejects(actual: Tensor, expected: Tensor, **options) -> str:
    """The reason with which `actual` is rejected."""
    report = compare_gradients({"v": actual}, {"v": expected}, **options)
    assert not report.passed
    return report.failures[0].reason


def spoilt(tensor: Tensor, relative: float) -> Tensor:
    """One element, made as large as the root mean square of all, off by `relative`."""
    result = tensor.clone()
    result[TYPICAL] *= 1 + relative
    return result


def with_typical_element(tensor: Tensor) -> Tensor:
    tensor[TYPICAL] = tensor.norm() / tensor.numel() ** 0.5
    return tensor


def test_equal_gradients_pass():
    report = compare_gradients({"v": gradient()}, {"v": gradient()})
    assert report.passed
    assert report.failures == ()
    assert report.max_relative_error == 0
    report.assert_passed()


def test_rounding_passes():
    g = gradient()
    rounded = g * (1 + 4 * torch.finfo(torch.float64).eps)
    assert compare_gradients({"v": rounded}, {"v": g}).passed


def test_one_element_of_a_million_that_is_off_by_a_billionth_is_found():
    g = with_typical_element(gradient())
    assert f"at [{TYPICAL}] it is" in rejects(spoilt(g, 1e-9), g)


def test_one_element_of_a_million_that_is_off_by_a_thousandth_is_found_in_single_precision():
    g = with_typical_element(gradient())
    assert f"at [{TYPICAL}] it is" in rejects(spoilt(g, 1e-3).float(), g.float(), truth={"v": g})


def test_an_error_spread_over_all_elements_is_found():
    g = gradient(1000)
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
    g = gradient(25).view(5, 5)
    assert reason in rejects(wrong(g), g)


def test_a_column_is_not_a_vector_even_where_both_are_zero():
    zeros = torch.zeros(64, dtype=torch.float64)
    assert torch.allclose(zeros, zeros.view(64, 1))  # which broadcasts
    assert "shape" in rejects(zeros.view(64, 1), zeros)


@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
def test_what_is_not_finite_passes_not_even_where_both_have_it(value):
    g = gradient(5)
    g[2] = value
    assert "at [2]" in rejects(g, g.clone())


def test_a_missing_and_a_superfluous_gradient_are_rejected():
    report = compare_gradients({"a": gradient(3), "c": gradient(3)}, {"a": gradient(3), "b": gradient(4)})
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_lower_precision_is_not_judged_without_the_truth(dtype):
    g = gradient(5).to(dtype)
    with pytest.raises(ValueError, match=f"v is {dtype}: give `truth`, the same gradient computed in float64"):
        compare_gradients({"v": g}, {"v": g})


def test_in_lower_precision_the_error_allowed_is_a_small_multiple_of_the_references_own():
    truth = gradient(1000)
    noise = gradient(1000, seed=1)
    expected = (truth * (1 + 2e-5 * noise)).float()

    def passes(error: float) -> bool:
        actual = (truth * (1 + error * noise)).float()
        return compare_gradients({"v": actual}, {"v": expected}, truth={"v": truth}).passed

    assert passes(2e-5)
    assert passes(6e-5)
    assert not passes(12e-5)


def test_a_reference_too_inexact_to_show_a_thousandth_is_no_reference():
    truth = gradient(1000)
    expected = (truth * (1 + 1e-4 * gradient(1000, seed=1))).float()
    assert "too badly conditioned to judge by" in rejects(truth.float(), expected, truth={"v": truth})
    assert compare_gradients({"v": truth.float()}, {"v": expected}, truth={"v": truth}, condition=1.01).passed


def test_a_single_precision_gradient_is_judged_against_the_truth_and_not_against_the_reference():
    truth = gradient(1000)
    wrong = truth.float() * 1.00005
    assert compare_gradients({"v": truth.float()}, {"v": wrong}, truth={"v": truth}).passed
    assert "off by" in rejects(wrong, truth.float(), truth={"v": truth})


def test_a_zero_that_is_declared_is_judged_against_its_summands():
    rounding, noise = 1e-16 * gradient(7), 1e-16 * gradient(7, seed=1)
    assert "off by" in rejects(rounding, noise)
    assert compare_gradients({"v": rounding}, {"v": noise}, zeros={"v": 1.0}).passed
    assert "off by" in rejects(1e-9 * gradient(7), noise, zeros={"v": 1.0})


def test_condition_widens_the_limit_where_a_gradient_is_a_small_difference():
    g = gradient(100)
    assert "off by" in rejects(g * (1 + 1e-9), g)
    assert compare_gradients({"v": g * (1 + 1e-9)}, {"v": g}, condition=1e6).passed


def test_labels_name_the_rows_of_the_report():
    report = compare_gradients(
        {"w": gradient(3), "b": -gradient(3)},
        {"w": gradient(3), "b": gradient(3)},
        labels={"b": "BP3, layer 1, ∂C/∂b"},
    )
    lines = str(report).splitlines()
    assert re.match(r"BP3, layer 1, ∂C/∂b +3 +2\.00e\+00 of +1\.0e-12  WRONG$", lines[0])
    assert lines[2].startswith("    at [")
    assert any(line.startswith("    diagnosis: the sign is wrong") for line in lines)
    assert lines[-1] == "ok: w"
    with pytest.raises(AssertionError, match="BP3, layer 1"):
        report.assert_passed()


# Whole networks. Square, because a transposed matrix does not fit elsewhere; biases and slopes all different.
SIZES, NAMES = (5, 5, 5, 5), ("tanh", "sigmoid", "softplus")


def judged(model: SpelledMLP):
    params, (x, y) = random_parameters(model, seed=1), random_batch(7, 5, 5, seed=2)
    loss = LOSSES["quadratic"]
    actual, expected = by_hand(model, loss, params, x, y), by_autograd(model, loss, params, x, y)
    backwards = [name for name in actual if name != "dx"]  # the order in which a backward pass computes
    return compare_gradients(actual, {name: expected[name] for name in backwards} | expected)


def test_the_network_that_the_wrong_ones_are_made_from_passes():
    judged(SpelledMLP(SIZES, NAMES)).assert_passed()


@pytest.mark.parametrize(("wrong", "culprit"), WRONG.items(), ids=[wrong.__name__ for wrong in WRONG])
def test_a_network_that_is_known_to_be_wrong_is_rejected(wrong, culprit):
    report = judged(wrong(SIZES, NAMES))
    assert not report.passed
    assert report.failures[0].name == culprit


# Single layers: softmax, because a cotangent of ones hides everything there.
def softmax(z: Tensor) -> tuple[Tensor, Tensor]:
    p = torch.softmax(z, dim=1)
    return p, p


def softmax_backward(dp: Tensor, p: Tensor) -> Tensor:
    return p * (dp - (dp * p).sum(dim=1, keepdim=True))


def zeros_backward(dp: Tensor, p: Tensor) -> Tensor:
    return torch.zeros_like(p)


LOGITS = gradient(12).view(3, 4)


def test_a_right_backward_passes():
    report = check_backward(softmax, softmax_backward, [LOGITS])
    report.assert_passed()
    example = [(row.name, row.oracle) for row in report.rows if not row.case]
    assert example == [
        ("dz", "autograd"), ("gradients", "differences"), ("dot product", "dot product"), ("pure", ""), ("linear", ""),
    ]  # fmt: skip


def test_a_cotangent_of_ones_would_not_tell_zeros_from_softmax():
    assert softmax_backward(torch.ones_like(LOGITS), softmax(LOGITS)[1]).norm() < 1e-15
    report = check_backward(softmax, zeros_backward, [LOGITS])
    assert [row.name for row in report.failures] == ["dz"]


def test_a_backward_that_writes_to_its_cotangent_is_rejected():
    def backward(dp: Tensor, p: Tensor) -> Tensor:
        result = softmax_backward(dp, p)
        dp.zero_()
        return result

    assert "pure" in [row.name for row in check_backward(softmax, backward, [LOGITS]).failures]


def test_a_backward_that_writes_to_its_cache_is_rejected():
    def backward(dp: Tensor, p: Tensor) -> Tensor:
        right = softmax_backward(dp, p)
        return p.copy_(right)

    failure = check_backward(softmax, backward, [LOGITS]).failures[-1]
    assert (failure.name, failure.reason) == ("pure", "an argument, an output or the cotangent was written to")


def test_a_forward_that_writes_to_its_argument_is_rejected():
    def forward(z: Tensor) -> tuple[Tensor, Tensor]:
        a = torch.tanh(z)
        if torch.is_inference_mode_enabled():
            z.add_(1)
        return a, a

    failure = check_backward(forward, lambda da, a: da * (1 - a * a), [LOGITS.clone()]).failures[-1]
    assert (failure.name, failure.reason) == ("pure", "an argument, an output or the cotangent was written to")


def test_a_backward_that_leans_on_autograd_is_rejected():
    def forward(z: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        z = z.detach().requires_grad_()
        return torch.tanh(z), (z, torch.tanh(z))

    def backward(da: Tensor, cache: tuple[Tensor, Tensor]) -> Tensor:
        z, a = cache
        return torch.autograd.grad(a, z, da)[0]

    row = check_backward(forward, backward, [LOGITS]).failures[0]
    assert row.diagnosis.kind == "raised"
    assert "RuntimeError" in row.reason


@pytest.mark.parametrize(
    ("backward", "reason"),
    [
        (lambda dz, cache: (dz @ cache[1],), "backward returned 1 gradients for the 2 arguments dx, dW"),
        (lambda dz, cache: (dz @ cache[1], None), "no gradient was returned"),
        (lambda dz, cache: (dz @ cache[1], cache[0].T @ dz), "its shape is"),
        (lambda dz, cache: (dz @ cache[1], (dz.T @ cache[0]).float()), "its dtype is torch.float32"),
        (lambda dz, cache: (dz @ cache[1], dz.T @ cache[0] / len(dz)), "off by"),
    ],
    ids=["one missing", "None", "transposed", "single precision", "mean"],
)
def test_a_wrong_gradient_of_one_argument_is_rejected(backward, reason):
    def forward(x: Tensor, W: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        return x @ W.T, (x, W)

    report = check_backward(forward, backward, [gradient(15).view(5, 3), gradient(6).view(2, 3)])
    assert not report.passed
    assert reason in report.failures[0].reason


def test_what_is_not_differentiable_is_declared():
    def forward(x: Tensor, mask: Tensor, ids: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        return (x * mask)[ids], (mask, ids)

    def backward(dy: Tensor, cache: tuple[Tensor, Tensor]) -> Tensor:
        mask, ids = cache
        return torch.zeros_like(mask).index_add(0, ids, dy) * mask

    arguments = [gradient(4), gradient(4, seed=1), torch.tensor([2, 0, 2])]
    check_backward(forward, backward, arguments, not_differentiable=["mask"]).assert_passed()
    assert not check_backward(forward, backward, arguments).passed
    with pytest.raises(ValueError, match="none of the arguments is differentiable"):
        check_backward(forward, backward, arguments, not_differentiable=["x", "mask"])


def test_repeated_ids_find_a_scatter_that_forgets_to_add():
    def forward(x: Tensor, ids: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        return x[ids], (x, ids)

    def backward(dy: Tensor, cache: tuple[Tensor, Tensor]) -> Tensor:
        x, ids = cache
        dx = torch.zeros_like(x)
        dx[ids] += dy
        return dx

    distinct = [gradient(4), torch.tensor([0, 1, 3])]
    assert check_backward(forward, backward, distinct, cases=[]).passed
    row = check_backward(forward, backward, distinct).failures[0]
    assert (row.case, row.diagnosis.kind) == ("ids repeated", "repeated indices")
    assert not check_backward(forward, backward, [gradient(4), torch.tensor([0, 1, 1])], cases=[]).passed


@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if name != "identity"])
def test_another_activations_derivative_is_rejected(name):
    right = ACTIVATIONS[name]
    for other in islice((a for a in ACTIVATIONS.values() if a is not right), 6):
        wrong = Activation(right.value, other.derivative)
        assert not check_backward(wrong.forward, wrong.backward, [LOGITS]).passed


def test_central_differences_restore_what_they_move():
    v = gradient(5)
    kept = v.clone()
    slopes = central_differences(lambda: (v**3).sum(), v)
    assert torch.equal(v, kept)
    torch.testing.assert_close(slopes, 3 * v * v, rtol=1e-8, atol=1e-9)


def test_the_directional_derivative_is_the_jacobian_times_the_direction():
    x, W, u, U = (gradient(6, seed).view(2, 3) for seed in range(4))
    tangent = directional_derivative(lambda x, W: (x @ W.T, None), [x, W], [0, 1], [u, U])
    torch.testing.assert_close(tangent, u @ W.T + x @ U.T)


@pytest.mark.parametrize("seed", range(3))
def test_the_cotangent_is_never_the_example_itself(seed):
    """As it would be if both were drawn from the same seed; batch norm takes such a cotangent to zero."""
    z = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    seen = []

    def backward(dz: Tensor, cache: Tensor) -> Tensor:
        seen.append(dz.clone())
        return dz

    check_backward(lambda z: (z + 0, z), backward, [z], seed=seed).assert_passed()
    assert differ(seen[0], z)
