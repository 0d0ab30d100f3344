"""The costs: values, gradients, extremes, targets and count."""

from math import log

import pytest
import torch
from torch import Tensor

from gradient_check import check_backward
from tests.support.against_torch import refusal
from tests.support.both_ways import LOSSES, TWIN_LOSSES

each_cost = pytest.mark.parametrize("name", LOSSES)


def example(batch: int = 5, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    output = 2 * torch.randn(batch, classes, generator=generator, dtype=torch.float64)
    return output, torch.randint(0, classes, (batch,), generator=generator)


def cost_and_gradient(name: str, output: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    with torch.inference_mode():
        C, cache = LOSSES[name].forward(output, y)
        return C, LOSSES[name].backward(1.0, cache)


@pytest.mark.parametrize("count", [None, 12])
@pytest.mark.parametrize("batch", [1, 5])
@each_cost
def test_cost_and_gradient_equal_torchs(name, batch, count):
    """And central differences, and the gradient is proportional to what comes after the cost."""

    def torchs(output, y, count):
        return TWIN_LOSSES[name](output, y, len(output) if count is None else count)

    arguments = (*example(batch), count)
    check_backward(LOSSES[name].forward, LOSSES[name].backward, arguments, reference=torchs).assert_passed()


@each_cost
def test_one_hot_rows_mean_the_same_as_class_indices(name):
    output, y = example()
    rows = torch.eye(4, dtype=torch.float64)[y]
    for by_rows, by_index in zip(*(cost_and_gradient(name, output, targets) for targets in (rows, y)), strict=True):
        assert torch.equal(by_rows, by_index)


@each_cost
def test_soft_targets(name):
    soft = torch.softmax(example(seed=1)[0], dim=1)
    arguments, loss = (example()[0], soft), LOSSES[name]
    check_backward(loss.forward, loss.backward, arguments, not_differentiable=["y"], cases=[]).assert_passed()


# One example of three outputs (1e4, −1e4, 0), label 0 or 1: the cost and its gradient, to the last digit.
EXTREMES = [
    ("quadratic", 0, 0.5 * (9999.0**2 + 1e8), (9999.0, -1e4, 0.0)),
    ("quadratic", 1, 0.5 * (1e8 + 10001.0**2), (1e4, -10001.0, 0.0)),
    ("squared-error", 0, 9999.0**2 + 1e8, (2 * 9999.0, -2e4, 0.0)),
    ("squared-error", 1, 1e8 + 10001.0**2, (2e4, -2 * 10001.0, 0.0)),
    ("sigmoid-cross-entropy", 0, log(2), (0.0, 0.0, 0.5)),
    ("sigmoid-cross-entropy", 1, 2e4 + log(2), (1.0, -1.0, 0.5)),
    ("softmax-cross-entropy", 0, 0.0, (0.0, 0.0, 0.0)),
    ("softmax-cross-entropy", 1, 2e4, (1.0, -1.0, 0.0)),
    ("smoothed", 0, 0.05 * 2e4 + 0.05 * 1e4, (1 - 0.9, -0.05, -0.05)),
    ("smoothed", 1, 0.9 * 2e4 + 0.05 * 1e4, (1 - 0.05, -0.9, -0.05)),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("name", "label", "cost", "gradient"), EXTREMES)
def test_outputs_of_ten_thousand_overflow_nothing(name, label, cost, gradient, dtype):
    output = torch.tensor([[1e4, -1e4, 0.0]], dtype=dtype)
    C, d_output = cost_and_gradient(name, output, torch.tensor([label]))
    precision = 8 * torch.finfo(dtype).eps
    assert C.item() == pytest.approx(cost, rel=precision)
    assert d_output.flatten().tolist() == pytest.approx(gradient, rel=precision, abs=precision)


def test_examples_with_logits_of_very_different_sizes_do_not_disturb_each_other():
    z, y = torch.tensor([[0.0, 1.0], [1e4, 1e4 + 1]], dtype=torch.float64), torch.tensor([0, 0])
    C, gradient = cost_and_gradient("softmax-cross-entropy", z, y)
    C_first, gradient_first = cost_and_gradient("softmax-cross-entropy", z[:1], y[:1])
    torch.testing.assert_close(C, C_first, rtol=1e-14, atol=0)
    torch.testing.assert_close(2 * gradient, gradient_first.expand(2, 2), rtol=1e-14, atol=0)


@pytest.mark.parametrize("shape", [(3,), (4,), (5, 1), (1, 4), (4, 5), (5, 4, 1), ()], ids=str)
@each_cost
def test_targets_of_another_shape_are_refused(name, shape):
    end = "do not fit outputs of shape (5, 4): give (5,) class indices or (5, 4) values"
    assert refusal(LOSSES[name].forward, (5, 4), shape) == f"targets of shape {shape} {end}"


def test_which_costs_start_from_logits():
    named = dict.fromkeys(name for name, *_ in EXTREMES)
    from_logits = ["sigmoid-cross-entropy", "softmax-cross-entropy", "smoothed"]
    assert [name for name in named if LOSSES[name].from_logits] == from_logits
