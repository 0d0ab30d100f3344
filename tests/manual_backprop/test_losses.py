"""The costs: values, gradients, extremes, targets and count."""

import pytest
import torch
from torch import Tensor

from gradient_check import central_differences, compare_gradients
from manual_backprop.losses import LOSSES as MAKERS
from manual_backprop.losses import SoftmaxCrossEntropy
from tests.support.both_ways import LOSSES, TWIN_LOSSES


def example(batch: int = 5, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    output = 2 * torch.randn(batch, classes, generator=generator, dtype=torch.float64)
    return output, torch.randint(0, classes, (batch,), generator=generator)


def cost_and_gradient(name: str, output: Tensor, y: Tensor, count: int | None = None) -> tuple[Tensor, Tensor]:
    with torch.inference_mode():
        C, cache = LOSSES[name].forward(output, y, count)
        return C, LOSSES[name].backward(1.0, cache)


@pytest.mark.parametrize("count", [None, 12])
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("name", LOSSES)
def test_cost_and_gradient_equal_torchs(name, batch, count):
    output, y = example(batch)
    leaf = output.clone().requires_grad_()
    expected = TWIN_LOSSES[name](leaf, y, batch if count is None else count)
    expected.backward()
    C, gradient = cost_and_gradient(name, output, y, count)
    wanted = {"C": expected.detach(), "gradient": leaf.grad}
    compare_gradients({"C": C, "gradient": gradient}, wanted).assert_passed()


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_equals_central_differences(name):
    output, y = example()
    _, gradient = cost_and_gradient(name, output, y)
    differences = central_differences(lambda: LOSSES[name].forward(output, y)[0], output, 1e-4)
    assert (gradient - differences).norm() < 1e-8 * gradient.norm()


@pytest.mark.parametrize("name", LOSSES)
def test_backward_is_proportional_to_what_comes_after_the_cost(name):
    output, y = example()
    cache = LOSSES[name].forward(output, y)[1]
    torch.testing.assert_close(
        LOSSES[name].backward(torch.tensor(-3.0, dtype=torch.float64), cache), -3 * LOSSES[name].backward(1.0, cache)
    )


@pytest.mark.parametrize("name", LOSSES)
def test_one_hot_rows_mean_the_same_as_class_indices(name):
    output, y = example()
    rows = torch.eye(4, dtype=torch.float64)[y]
    for by_rows, by_index in zip(
        cost_and_gradient(name, output, rows), cost_and_gradient(name, output, y), strict=True
    ):
        assert torch.equal(by_rows, by_index)


@pytest.mark.parametrize("name", LOSSES)
def test_soft_targets(name):
    output, _ = example()
    soft = torch.softmax(example(seed=1)[0], dim=1)
    leaf = output.clone().requires_grad_()
    (expected,) = torch.autograd.grad(LOSSES[name].forward(leaf, soft)[0], leaf)
    compare_gradients({"gradient": cost_and_gradient(name, output, soft)[1]}, {"gradient": expected}).assert_passed()


def test_values_by_hand():
    """Two examples of two classes: a = (0.5, 2), (1, −1), labels 0 and 1, so a − y = (−0.5, 2), (1, −2)."""
    a, y = torch.tensor([[0.5, 2.0], [1.0, -1.0]]), torch.tensor([0, 1])
    C, gradient = cost_and_gradient("quadratic", a, y)
    assert C.item() == (0.25 + 4 + 1 + 4) / 2 / 2
    assert gradient.tolist() == [[-0.25, 1.0], [0.5, -1.0]]
    C, gradient = cost_and_gradient("squared-error", a, y)
    assert C.item() == (0.25 + 4 + 1 + 4) / 2
    assert gradient.tolist() == [[-0.5, 2.0], [1.0, -2.0]]


def test_cross_entropies_of_equal_logits():
    """Without a preference softmax costs ln n, and every sigmoid ln 2."""
    z, y = torch.zeros(3, 8, dtype=torch.float64), torch.tensor([0, 3, 7])
    assert cost_and_gradient("softmax-cross-entropy", z, y)[0].item() == pytest.approx(
        2.0794415416798357, rel=1e-15, abs=0
    )
    assert cost_and_gradient("sigmoid-cross-entropy", z, y)[0].item() == pytest.approx(
        8 * 0.6931471805599453, rel=1e-15, abs=0
    )


# One example of three outputs (1e4, −1e4, 0), label 0 or 1: the cost and its gradient, to the last digit.
EXTREMES = [
    ("quadratic", 0, 0.5 * (9999.0**2 + 1e8), (9999.0, -1e4, 0.0)),
    ("quadratic", 1, 0.5 * (1e8 + 10001.0**2), (1e4, -10001.0, 0.0)),
    ("squared-error", 0, 9999.0**2 + 1e8, (2 * 9999.0, -2e4, 0.0)),
    ("squared-error", 1, 1e8 + 10001.0**2, (2e4, -2 * 10001.0, 0.0)),
    ("sigmoid-cross-entropy", 0, 0.6931471805599453, (0.0, 0.0, 0.5)),
    ("sigmoid-cross-entropy", 1, 2e4 + 0.6931471805599453, (1.0, -1.0, 0.5)),
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


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_label_smoothing_is_torchs(smoothing):
    output, y = example(batch=7, classes=5)
    leaf = output.clone().requires_grad_()
    expected = torch.nn.functional.cross_entropy(leaf, y, label_smoothing=smoothing)
    expected.backward()
    loss = SoftmaxCrossEntropy(label_smoothing=smoothing)
    C, cache = loss.forward(output, y)
    wanted = {"C": expected.detach(), "gradient": leaf.grad}
    compare_gradients({"C": C, "gradient": loss.backward(1.0, cache)}, wanted).assert_passed()


def test_logits_far_from_zero_cost_what_they_cost_near_it():
    output, y = example()
    C, gradient = cost_and_gradient("softmax-cross-entropy", output, y)
    C_far, gradient_far = cost_and_gradient("softmax-cross-entropy", output + 5000, y)
    torch.testing.assert_close(C_far, C, rtol=1e-11, atol=0)
    torch.testing.assert_close(gradient_far, gradient, rtol=1e-11, atol=0)


def test_examples_with_logits_of_very_different_sizes_do_not_disturb_each_other():
    z, y = torch.tensor([[0.0, 1.0], [1e4, 1e4 + 1]], dtype=torch.float64), torch.tensor([0, 0])
    C, gradient = cost_and_gradient("softmax-cross-entropy", z, y)
    C_first, gradient_first = cost_and_gradient("softmax-cross-entropy", z[:1], y[:1])
    torch.testing.assert_close(C, C_first, rtol=1e-14, atol=0)
    torch.testing.assert_close(2 * gradient, gradient_first.expand(2, 2), rtol=1e-14, atol=0)


@pytest.mark.parametrize("shape", [(4,), (5, 1), (1, 4), (4, 5), (5, 4, 1), ()], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_targets_of_another_shape_are_refused(name, shape):
    output, _ = example(batch=5, classes=4)
    with pytest.raises(ValueError, match=r"do not fit outputs of shape \(5, 4\): give \(5,\) class indices"):
        LOSSES[name].forward(output, torch.zeros(shape, dtype=torch.int64))


def test_the_refusal_names_all_three_shapes():
    with pytest.raises(ValueError, match=r"^targets of shape \(3,\) do not fit outputs of shape \(5, 4\): ") as refusal:
        LOSSES["quadratic"].forward(example()[0], torch.zeros(3, dtype=torch.int64))
    assert str(refusal.value).endswith(": give (5,) class indices or (5, 4) values")


@pytest.mark.parametrize("name", MAKERS)
def test_nothing_is_written_to_an_argument(name):
    output, y = example()
    kept, kept_y = output.clone(), y.clone()
    cost_and_gradient(name, output, y)
    assert torch.equal(output, kept)
    assert torch.equal(y, kept_y)


def test_which_costs_start_from_logits():
    assert {name for name, make in MAKERS.items() if make().from_logits} == {
        "sigmoid-cross-entropy",
        "softmax-cross-entropy",
    }
