"""Lessons on single weights and neurons: three ways, sensitivity, shared nodes, linear backward; and their tools."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from gallery import perceptron
from lessons import fire_together, linear_backward, measure, one_example, sensitivity, shared_nodes, three_ways
from lessons.measure import AGREE, distance, new_network, outputs, train_to, wiggle
from lessons.runs import batch, first, train
from manual_backprop.tape import Tape
from tests.support.lesson_networks import EXACT, costs_by_torch, gradient_by_torch, with_mistake
from training import checkpoint
from training.data import load
from training.families.configure import configure


class OneWeightForgotten(perceptron.SpelledMLP):
    """What it says is right to first order, but it does not say all."""

    def weight_gradient(self, l, delta, a_before, a, params):
        return super().weight_gradient(l, delta, a_before, a, params) * (torch.arange(a_before.shape[1]) < 15)


class Clipped(perceptron.SpelledMLP):
    """A backward pass that is not linear."""

    def delta(self, l, da, z, a):
        return super().delta(l, da, z, a).clamp(-0.1, 0.1)


class Biased(perceptron.SpelledMLP):
    """One that is affine, by very little."""

    def da_before(self, l, delta, params):
        return super().da_before(l, delta, params) + 1e-9


def noticed(lesson, *wrong, right=(perceptron.SpelledMLP,), long=False):
    """And the right network, written in the same way, is not taken for a wrong one."""
    marks = [pytest.mark.long] if long else []
    return [pytest.param(lesson, w, marks=marks, id=f"{lesson.__name__}-{w.__name__}") for w in (*right, *wrong)]


@pytest.mark.sweep(5)
@pytest.mark.parametrize(
    ("lesson", "wrong"),
    [
        *noticed(
            three_ways,
            *(perceptron.SlopeForgotten, perceptron.SignOfDelta, perceptron.BiasesDecay, OneWeightForgotten),
        ),
        *noticed(sensitivity, perceptron.BiasesDecay),
        *noticed(sensitivity, perceptron.SlopeForgottenInOutputLayer, perceptron.MeanTwice, right=(), long=True),
        *noticed(shared_nodes, perceptron.SlopeForgotten, perceptron.SlopeTwice),
        *noticed(linear_backward, Clipped, Biased),
        *noticed(fire_together, perceptron.SlopeForgotten, perceptron.WeightGradientOfTheFirstExample, long=True),
        *noticed(one_example, perceptron.SignOfDelta, perceptron.LastExampleLost, long=True),
    ],
)
def test_a_wrong_backward_pass_is_noticed(monkeypatch, sample, tmp_path, lesson, wrong):
    smaller = {
        three_ways: {"DIRECTIONS": 10},
        sensitivity: {"PER_LAYER": 100},
        fire_together: {"EXAMPLES": 20, "STEPS": 10},
        one_example: {"STAGES": (0, 30, 40), "EXAMPLES": 300, "PICTURES": 50},
    }
    for name, value in smaller.get(lesson, {}).items():
        monkeypatch.setattr(lesson, name, value)
    if lesson is three_ways:  # its neuron's alone, not that of the network before
        neuron = wrong(three_ways.NEURON.sizes, three_ways.NEURON.activations)
        monkeypatch.setattr(three_ways, "NEURON", neuron)
    else:
        with_mistake(monkeypatch, wrong)
    assert lesson.run(sample, 0, tmp_path).holds == (wrong is perceptron.SpelledMLP)


# What they measure with


def test_wiggling_finds_known_gradients_of_one_cost_and_of_several():
    v = torch.tensor([[0.5, -1.0], [2.0, 0.0]], dtype=torch.float64)
    expected = 3 * v.flatten() ** 2
    assert_close(wiggle(lambda v: (v**3).sum(), v), expected, rtol=0, atol=1e-9)
    assert_close(wiggle(lambda v: (v**3).sum(), v, torch.tensor([2, 0])), expected[[2, 0]], rtol=0, atol=1e-9)
    found = wiggle(lambda v: torch.stack([v.sum(), (v**3).sum()]), v)
    assert_close(found, torch.stack([torch.ones(4, dtype=v.dtype), expected], dim=1), rtol=0, atol=1e-9)


def test_distances_and_errors_are_relative():
    """To what is expected; to the sum of the uses of a shared value; to what superposition gives."""
    assert distance(torch.tensor([3.0, 4.5]), torch.tensor([3.0, 4.0])) == pytest.approx(0.1)
    shared = shared_nodes.Shared("v", torch.tensor([[1.0, 0.0], [2.0, 4.0]]), torch.tensor([3.0, 4.0]))
    assert (shared.error_of_sum, shared.error_of_last) == (0, pytest.approx(0.2))
    u, v = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    assert linear_backward.deviation(u + v, u + v) == 0
    assert linear_backward.deviation(u, u + v) == pytest.approx(0.2)


def test_outputs_costs_and_gradients_are_those_of_autograd(network, sample):
    x, y = batch(sample.train, 20)
    theta = network.params.theta
    a, costs = outputs(network.model, network.params, x), costs_by_torch(network, theta, x, y)
    assert torch.equal(a, network.outputs(x))
    assert distance((a - F.one_hot(y, 10)).square().sum(dim=1), costs) < EXACT
    assert distance(measure.costs(network, theta, x, y), costs) < EXACT
    assert distance(measure.gradient(network, x, y), gradient_by_torch(network, x, y)) < EXACT


def test_training_goes_on_as_a_run_does(sample, tmp_path):
    data = first(sample, 350, 20)  # three full batches and a smaller one
    options = {"loss": "squared-error", "lr": 3.0, "schedule": "constant", "dtype": "float64", "seed": 4}
    train(configure(hidden=(16, 16), max_steps=9, **options), data, tmp_path / "run")
    network = new_network(data, seed=4)
    for steps in (0, 5, 9):
        train_to(network, steps, seed=4)
        assert network.steps == steps
    for name, tensor in checkpoint.load(tmp_path / "run")["model"].items():
        assert torch.equal(network.params[name], tensor), name


# three-ways


def test_the_neuron_has_the_gradient_of_autograd():
    v = torch.randn(33, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    C = (torch.sigmoid(v[0] + v[1:17] @ v[17:]) - 1) ** 2
    assert_close(three_ways.cost(v.detach()), C.detach(), rtol=EXACT, atol=0)
    assert distance(three_ways.gradient(v.detach()), torch.autograd.grad(C, v)[0]) < EXACT


def test_the_neuron_is_that_of_the_2(sample):
    v = three_ways.output_neuron(sample, seed=1)
    whole = new_network(sample, seed=1)
    train_to(whole, three_ways.STEPS, seed=1)
    x, y = batch(sample.train, 100)
    output = outputs(whole.model, whole.params, x[y == 2][:1])
    assert torch.sigmoid(v[0] + v[1:17] @ v[17:]).item() == pytest.approx(output[0, 2].item(), rel=EXACT)


@pytest.mark.parametrize("way", three_ways.WAYS)
def test_of_all_nudges_the_one_along_the_gradient_is_best_and_foreseen(sample, way):
    where, length = three_ways.WAYS[way], 1e-3
    v = three_ways.output_neuron(sample, seed=0)
    dv = three_ways.gradient(v)
    best = three_ways.changes(v, where, -dv[where].unsqueeze(0), length).item()
    assert best == pytest.approx(-length * dv[where].norm().item(), rel=1e-2)
    random = torch.randn(500, len(dv[where]), generator=torch.Generator().manual_seed(0), dtype=v.dtype)
    assert (three_ways.changes(v, where, random, length) >= best).all()
    right, off = three_ways.errors(v, dv, where), three_ways.errors(v, 1.01 * dv, where)
    assert right[-2] / right[-1] == pytest.approx(4, rel=0.02)  # halving a nudge quarters the error
    assert off[-2] / off[-1] == pytest.approx(2, rel=0.05)  # of a right gradient only


def test_a_nudge_moves_only_its_values_and_by_its_length(monkeypatch):
    theta, seen = torch.tensor([2.0, 5.0, 1.0]), []
    assert sensitivity.change(lambda theta: (theta**2).sum(), theta, 1, 0.5) == 5.25
    assert theta.tolist() == [2, 5, 1]
    monkeypatch.setattr(three_ways, "cost", lambda v: seen.append(v) or v.sum())
    three_ways.changes(torch.zeros(33), slice(1, 17), torch.full((1, 16), 2.0), 0.5)
    (nudged,) = [v for v in seen if v.any()]
    assert nudged.norm().item() == pytest.approx(0.5)
    assert torch.equal(nudged[1:17], torch.full((16,), 0.125))


# sensitivity


def test_the_pair_is_32_to_1_in_autograd_too(network, sample):
    x, y = batch(sample.train, 50)
    first, second = sensitivity.pair(network.params, measure.gradient(network, x, y))
    dtheta = gradient_by_torch(network, x, y)
    assert (dtheta[first] / dtheta[second]).item() == pytest.approx(32, rel=1e-3)
    weights = network.params.vector(lambda name: float(name.endswith("weight"))).bool()
    assert weights[[first, second]].all()
    assert (dtheta[weights].abs() > dtheta[first].abs()).sum() < 100


def test_a_weight_is_named_by_its_place_and_every_layer_takes_part(network):
    params = network.params
    places = {0: "W¹[0, 0]", 3 * 784 + 5: "W¹[3, 5]", 16 * 785 + 2 * 16 + 7: "W²[2, 7]"}
    places |= {16 * 785 + 16 * 17 + 9 * 16 + 15: "W³[9, 15]"}
    assert {place: sensitivity.name_of(params, place) for place in places} == places
    at = sensitivity.some_of_each_layer(params, seed=0)
    assert len(at.unique()) == len(at)
    assert sensitivity.layers_of(params)[at].long().bincount().tolist() == [0, 300, 16 * 17, 10 * 17]


# shared-nodes


def test_a_shared_value_has_the_gradient_of_autograd(sample):
    x, y = batch(sample.train, 8)
    a = torch.linspace(-1, 1, 9, dtype=torch.float64).requires_grad_()
    expected = torch.autograd.grad((0.5 * torch.sin(a + a) ** 2).sum(), a)[0]
    assert distance(shared_nodes.added(a.detach()).uses.sum(dim=0), expected) < EXACT
    for shared in (shared_nodes.weight(x, y, 0), shared_nodes.node(x, y, 0)):
        assert shared.error_of_sum < AGREE
        assert shared.error_of_last > 0.1


def test_a_shared_weight_has_the_gradient_of_autograd(monkeypatch, sample):
    x, y = batch(sample.train, 8)
    made = []
    right = shared_nodes.initialize
    monkeypatch.setattr(shared_nodes, "initialize", lambda params, *rest: made.append(params) or right(params, *rest))
    monkeypatch.setattr(shared_nodes, "wiggle", lambda cost, v: torch.zeros(v.numel()))
    uses = shared_nodes.weight(x, y, 0).uses
    (params,) = made
    W, a = params["layer2.weight"].clone().requires_grad_(), x
    for l, weight in ((1, params["layer1.weight"]), (2, W), (3, W), (4, params["layer4.weight"])):
        a = torch.sigmoid(F.linear(a, weight, params[f"layer{l}.bias"]))
    C = 0.5 * F.mse_loss(a, F.one_hot(y, 10).double(), reduction="sum") / len(y)
    assert distance(uses.sum(dim=0), torch.autograd.grad(C, W)[0].flatten()) < EXACT


def test_shared_nodes_notices_a_use_that_is_left_out(monkeypatch, sample, tmp_path):
    monkeypatch.setattr(shared_nodes.Shared, "error_of_sum", shared_nodes.Shared.error_of_last)
    assert not shared_nodes.run(sample, 0, tmp_path).holds


# linear-backward


def test_linear_backward_notices_a_forward_pass_that_adds_up(monkeypatch, sample, tmp_path):
    """With a linear forward pass nothing would be said of a difference between the two."""
    network = linear_backward.learner(linear_backward.NETWORK, sample)
    for name, tensor in network.params.items():
        if name.endswith("bias"):
            tensor.zero_()
    network.model = type(network.model)(network.model.sizes, ("identity",) * 3)
    monkeypatch.setattr(linear_backward, "learner", lambda config, data: network)
    assert not linear_backward.run(sample, 0, tmp_path).holds


def test_the_backward_pass_is_the_matrix_that_autograd_finds(network, sample):
    x, _ = batch(sample.train, 1)
    rows = []
    for wish in torch.eye(10, dtype=x.dtype).split(1):
        tape = Tape(need_dx=True)
        network.model.forward(network.params, x, tape)
        rows.append(network.model.backward(network.params, wish, {}, tape))
    expected = torch.autograd.functional.jacobian(lambda x: outputs(network.model, network.params, x), x)
    assert distance(torch.cat(rows), expected[0, :, 0]) < EXACT


# all of them


def test_the_same_seed_gives_the_same_report(sample, tmp_path):
    reports = [shared_nodes.run(sample, seed, tmp_path) for seed in (3, 3, 4)]
    assert (reports[0].table, reports[0].verdict) == (reports[1].table, reports[1].verdict)
    assert reports[0].table != reports[2].table


@pytest.mark.long
def test_mnist_and_its_sample_give_the_same_report(mnist_dir, sample, tmp_path):
    data = load("mnist", mnist_dir)
    for lesson in (three_ways, sensitivity):
        assert lesson.run(data, 0, tmp_path).table == lesson.run(sample, 0, tmp_path).table
