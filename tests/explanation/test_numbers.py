"""Every number of an explanation, against autograd. What explain.py refuses is in test_refused_questions.py."""

import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from reference.mlp import ACTIVATIONS
from tests.support.both_ways import TWIN_LOSSES
from tests.support.explained import RATES, Autograd, a_network, explained

NETWORKS = {
    **{name: {"activation": (name,)} for name in ACTIVATIONS},
    **{name: {"loss": name} for name in TWIN_LOSSES},
    "one hidden layer": {"hidden": (4,), "activation": ("tanh", "sigmoid")},
    "four hidden layers": {"hidden": (5, 4, 6, 3), "activation": ("tanh", "gelu", "relu", "softplus", "identity")},
}


def assert_equal(actual, expected, tolerance=1e-12):
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    assert (actual - expected).norm() <= tolerance * expected.norm() + 1e-300


@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
def test_numbers_are_those_of_autograd(options):
    """Forward and backward pass, terms that add up, a mini-batch's gradients, and the costs after a step."""
    trained, x, y = a_network(**options)
    e, net, truth = explained(trained, x, y), Autograd(trained), Autograd(trained).parts(x[:1], y[:1])
    assert e.cost == pytest.approx(truth.cost, rel=1e-13)
    assert e.cost_terms.sum().item() == pytest.approx(truth.cost, rel=1e-13)
    assert_equal(e.dx, truth.da[0])
    expected = {"a_before": truth.a, "a": truth.a[1:], "z": truth.z, "slope": truth.slope, "da": truth.da[1:]}
    expected |= {"delta": truth.dz, "dW": truth.dW, "db": truth.db}
    for l, layer in enumerate(e.layers):
        for name, of_layers in expected.items():
            assert_equal(getattr(layer, name), of_layers[l])
        assert_equal(layer.b + layer.z_terms.sum(dim=1), truth.z[l])
        assert_equal(layer.wishes_before.sum(dim=0), -truth.da[l])
        assert layer.equation == ("BP1" if layer is e.layers[-1] else "BP2")

    each, average = net.gradients(x, y), net.gradient(x, y)
    assert_equal(e.batch.gradients, each)
    assert_equal(e.batch.average, average)
    assert_equal(e.batch.gradients.mean(dim=0), e.batch.average, 1e-14)
    assert_equal(e.batch.costs, net.costs(x, y))
    for steps, direction in ((e.own_step, each[0]), (e.average_step, average)):
        for r, rate in enumerate(RATES):
            assert_equal(steps.costs[r], Autograd(trained, net.theta.detach() - rate * direction).costs(x, y))
            assert_equal(steps.predicted[r], -rate * each @ direction)


def test_agreement_is_the_cosine_and_0_of_an_example_without_a_gradient():
    batch = explained(*a_network()).batch
    assert_equal(batch.agreement, F.cosine_similarity(batch.gradients, batch.gradients[:1]))
    assert_equal(batch.agreement_with_average, F.cosine_similarity(batch.gradients, batch.average.unsqueeze(0)))
    still = replace(batch, gradients=torch.cat([batch.gradients[:1], torch.zeros_like(batch.gradients[1:])]))
    assert still.agreement.tolist() == pytest.approx([1, 0, 0, 0, 0, 0, 0])


def test_sensitivities_are_the_sizes_of_the_weights_gradients():
    trained, x, y = a_network(("relu",))
    x[0, 2] = 0  # six weights whose a is 0
    e, truth = explained(trained, x, y), Autograd(trained).parts(x[:1], y[:1])
    sizes = torch.cat([dW.flatten().abs() for dW in truth.dW])
    assert_equal(e.sensitivities, sizes)
    assert len(e.ranking) == (sizes > 0).sum() < len(sizes)
    for place, size in ((0, sizes.max()), (-1, sizes[sizes > 0].min())):
        weight = e.weight_at(int(e.ranking[place]))
        assert abs(weight.gradient) == pytest.approx(size.item(), rel=1e-12)
        name, j, k = re.fullmatch(r"(layer\d\.weight)\[(\d+), (\d+)\]", weight.name).groups()
        assert weight.value == trained.learner.params[name][int(j), int(k)].item()
        assert weight.gradient == pytest.approx(truth.dW[weight.layer - 1][int(j), int(k)].item(), rel=1e-12)
