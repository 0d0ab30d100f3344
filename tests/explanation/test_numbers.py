"""Every number of an explanation, against autograd. What explain.py refuses is in test_bad_input.py."""

import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from explanation.numbers import explain
from reference.mlp import ACTIVATIONS
from tests.support.both_ways import TWIN_LOSSES
from tests.support.explained import RATES, Autograd, a_network, explained

NETWORKS = {
    **{name: {"activation": (name,)} for name in ACTIVATIONS},
    **{name: {"loss": name} for name in TWIN_LOSSES},
    "one hidden layer": {"hidden": (4,), "activation": ("tanh", "sigmoid")},
    "four hidden layers": {"hidden": (5, 4, 6, 3), "activation": ("tanh", "gelu", "relu", "softplus", "identity")},
}


def assert_equal(actual: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    assert (actual - expected).norm() <= tolerance * expected.norm() + 1e-300


@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS.keys())
def test_numbers_are_those_of_autograd(options: dict) -> None:
    """Forward and backward pass, terms that add up, a mini-batch's gradients, and the costs after a step."""
    trained, x, y = a_network(**options)
    e, net, truth = explained(trained, x, y), Autograd(trained), Autograd(trained).parts(x[:1], y[:1])
    assert e.cost == pytest.approx(truth.cost, rel=1e-13)
    assert e.cost_terms.sum().item() == pytest.approx(truth.cost, rel=1e-13)
    assert_equal(e.dx, truth.da[0])
    for l, layer in enumerate(e.layers):
        assert_equal(layer.a_before, truth.a[l])
        assert_equal(layer.a, truth.a[l + 1])
        assert_equal(layer.z, truth.z[l])
        assert_equal(layer.slope, truth.slope[l])
        assert_equal(layer.da, truth.da[l + 1])
        assert_equal(layer.delta, truth.dz[l])
        assert_equal(layer.dW, truth.dW[l])
        assert_equal(layer.db, truth.db[l])
        assert_equal(layer.b + layer.z_terms.sum(dim=1), truth.z[l])
        assert_equal(layer.wishes_before.sum(dim=0), -truth.da[l])
        assert layer.equation == ("BP1" if layer is e.layers[-1] else "BP2")

    each = net.gradients(x, y)
    assert_equal(e.batch.gradients, each)
    assert_equal(e.batch.average, net.gradient(x, y))
    assert_equal(e.batch.gradients.mean(dim=0), e.batch.average, 1e-14)
    assert_equal(e.batch.costs, net.costs(x, y))
    for steps, direction in ((e.own_step, each[0]), (e.average_step, net.gradient(x, y))):
        for r, rate in enumerate(RATES):
            moved = Autograd(trained, net.theta.detach() - rate * direction)
            assert_equal(steps.costs[r], moved.costs(x, y))
            assert_equal(steps.predicted[r], -rate * each @ direction)


def test_a_small_step_helps_as_much_as_is_predicted() -> None:
    trained, x, y = a_network(("tanh",))
    e = explain(trained, x, y, range(7), [1e-6])
    assert_equal(e.own_step.costs[0] - e.batch.costs, e.own_step.predicted[0], 1e-4)
    assert e.own_step.costs[0, 0] < e.batch.costs[0]


def test_agreement_is_the_cosine_and_0_of_an_example_without_a_gradient() -> None:
    batch = explained(*a_network()).batch
    assert_equal(batch.agreement, F.cosine_similarity(batch.gradients, batch.gradients[:1]))
    assert_equal(batch.agreement_with_average, F.cosine_similarity(batch.gradients, batch.average.unsqueeze(0)))
    still = replace(batch, gradients=torch.cat([batch.gradients[:1], torch.zeros_like(batch.gradients[1:])]))
    assert still.agreement.tolist() == pytest.approx([1, 0, 0, 0, 0, 0, 0])


def test_sensitivities_are_the_sizes_of_the_weights_gradients() -> None:
    trained, x, y = a_network(("relu",))
    x[0, 2] = 0  # six weights whose a is 0
    e, truth = explained(trained, x, y), Autograd(trained).parts(x[:1], y[:1])
    sizes = torch.cat([dW.flatten().abs() for dW in truth.dW])
    assert_equal(e.sensitivities, sizes)
    assert len(e.ranking) == (sizes > 0).sum() < len(sizes)
    most, least = e.weight_at(int(e.ranking[0])), e.weight_at(int(e.ranking[-1]))
    assert abs(most.gradient) == pytest.approx(sizes.max().item(), rel=1e-12)
    assert abs(least.gradient) == pytest.approx(sizes[sizes > 0].min().item(), rel=1e-12)
    for weight in (most, least):
        name, j, k = re.fullmatch(r"(layer\d\.weight)\[(\d+), (\d+)\]", weight.name).groups()  # type: ignore[union-attr]
        assert weight.value == trained.learner.params[name][int(j), int(k)].item()
        assert weight.gradient == pytest.approx(truth.dW[weight.layer - 1][int(j), int(k)].item(), rel=1e-12)
