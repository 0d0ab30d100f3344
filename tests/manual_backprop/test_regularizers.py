"""L1, max-norm and clipping, against hand calculation and torch."""

import pytest
import torch
from torch import nn

from manual_backprop import clipping
from manual_backprop.models.mlp import MLP
from manual_backprop.regularizers import l1_subgradient, max_norm
from tests.support.problems import manual_learner, random_batches, rates, reference_learner, relative_difference


def test_l1_pulls_by_the_same_amount_whatever_the_size_and_not_at_all_at_zero():
    theta = torch.tensor([3.0, -0.001, 0.0, -0.0, 5.0])
    decay = torch.tensor([0.5, 0.5, 0.5, 0.5, 0.0])
    assert l1_subgradient(theta, decay).tolist() == [0.5, -0.5, 0.0, 0.0, 0.0]


def test_l1_is_autograds_of_the_penalty():
    theta = torch.randn(30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theta[::7] = 0
    decay = torch.linspace(0, 1, 30, dtype=torch.float64)
    leaf = theta.clone().requires_grad_()
    (decay * leaf.abs()).sum().backward()
    assert torch.equal(l1_subgradient(theta, decay), leaf.grad)


def test_max_norm_shortens_the_rows_that_are_too_long():
    W = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0], [0.0, -2.0]], dtype=torch.float64)
    expected = torch.tensor([[1.2, 1.6], [0.3, 0.4], [0.0, 0.0], [0.0, -2.0]], dtype=torch.float64)
    torch.testing.assert_close(max_norm(W, 2.0), expected, rtol=1e-15, atol=0)
    torch.testing.assert_close(max_norm(W, 2.0), W.renorm(2, 0, 2.0), rtol=1e-6, atol=0)


def test_max_norm_takes_a_kernel_as_all_that_leads_into_one_output():
    W = torch.randn(3, 2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bounded = max_norm(W, 1.5)
    assert bounded.shape == W.shape
    torch.testing.assert_close(bounded.flatten(1).norm(dim=1), torch.full((3,), 1.5, dtype=torch.float64))


@pytest.mark.parametrize("limit", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("scale", [0.0, 1e-6, 1.0, 1e6])
def test_clipping_is_torchs(limit, scale):
    gradient = scale * torch.randn(50, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    by_norm, by_value = (nn.Parameter(torch.zeros(50, dtype=torch.float64)) for _ in range(2))
    by_norm.grad, by_value.grad = gradient.clone(), gradient.clone()
    nn.utils.clip_grad_norm_([by_norm], limit)
    nn.utils.clip_grad_value_([by_value], limit)
    torch.testing.assert_close(clipping.by_norm(gradient, limit), by_norm.grad, rtol=1e-13, atol=0)
    torch.testing.assert_close(clipping.by_value(gradient, limit), by_value.grad, rtol=0, atol=0)


@pytest.mark.parametrize("clip", [clipping.by_norm, clipping.by_value])
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan], ids=str)
def test_clipping_hides_no_value_that_is_not_finite(clip, value):
    clipped = clip(torch.tensor([1.0, value, -2.0]), 0.5)
    assert clipped[1].isnan()


# In a learner: the order is L1, clipping, the optimizer with L2, max-norm


def one_layer(sample, **rules):
    return manual_learner(MLP((784, 10), ("identity",)), "softmax-cross-entropy", sample.train, rules=rules)


def test_the_norm_that_is_clipped_is_that_of_all_parameters_together_and_l1_counts(sample):
    learner = one_layer(sample, l1=0.1, clip_norm=0.5)
    before = learner.params.theta.clone()
    learner.advance(random_batches(1, 16, 100), rates(1, 1.0))
    assert (learner.params.theta - before).norm().item() == pytest.approx(0.5, rel=1e-5)


def test_l1_is_on_weights_only(sample):
    learners = [one_layer(sample, l1=l1) for l1 in (0.0, 0.1)]
    for learner in learners:
        learner.advance(random_batches(1, 16, 100), rates(1, 1.0))
    plain, pulled = (learner.parameters for learner in learners)
    assert torch.equal(plain["layer1.bias"], pulled["layer1.bias"])
    start = one_layer(sample).parameters["layer1.weight"]
    difference = pulled["layer1.weight"] - plain["layer1.weight"]
    torch.testing.assert_close(difference, -0.1 * start.sign(), rtol=1e-10, atol=0)


def test_max_norm_holds_after_every_step_and_is_no_matter_for_biases(sample):
    learner = one_layer(sample, max_norm=0.5)
    learner.params["layer1.bias"].add_(3.0)
    learner.advance(random_batches(5, 16, 100), rates(5, 1.0))
    assert learner.parameters["layer1.weight"].norm(dim=1).max() <= 0.5 * (1 + 1e-12)
    assert learner.parameters["layer1.bias"].norm() > 5


RULES = {
    "l1": {"l1": 1e-3},
    "clipping by norm": {"clip_norm": 0.2, "l1": 1e-3},
    "clipping by value": {"clip_value": 0.01},
    "max-norm": {"max_norm": 0.7},
}


@pytest.mark.sweep(3)
@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_a_hundred_steps_apart_end_at_the_same_parameters(sample, rules):
    model = MLP((784, 12, 10), ("tanh", "identity"), dropout=0.2)
    manual = manual_learner(model, "softmax-cross-entropy", sample.train, rules=rules)
    reference = reference_learner(manual, "softmax-cross-entropy")
    batches = random_batches(100, 16, len(sample.train))
    manual.advance(batches, rates(100, 0.1))
    reference.advance(batches, rates(100, 0.1))
    assert relative_difference(manual.state_dict()["model"], reference.state_dict()["model"]) < 1e-11
