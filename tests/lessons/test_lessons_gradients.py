"""Lessons on gradients of single weights, values and examples, one after another, and before them their tools."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from lessons import fire_together, linear_backward, measure, one_example, sensitivity, shared_nodes, three_ways
from lessons.descent import descend
from lessons.measure import AGREE, distance, new_network, outputs, train_to, wiggle
from lessons.runs import batch, first, train
from tests.support.lesson_networks import EXACT, costs_by_torch, gradient_by_torch
from training import checkpoint
from training.data import load
from training.families.configure import configure


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
    assert not list(tmp_path.rglob("events.*")), "it is no run of its own for TensorBoard"
    assert list(descend(new_network(data, seed=4), 100, 3.0, epochs=2, seed=4)) == list(range(9)), (
        "also before the first"
    )
    network = new_network(data, seed=4)
    for steps in (0, 5, 9):
        train_to(network, steps, seed=4)
        assert network.steps == steps
    for name, tensor in checkpoint.load(tmp_path / "run")["model"].items():
        assert torch.equal(network.params[name], tensor), name


def test_the_neuron_is_that_of_the_2_and_has_the_gradient_of_autograd(sample):
    v = torch.randn(33, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    C = (torch.sigmoid(v[0] + v[1:17] @ v[17:]) - 1) ** 2
    assert_close(three_ways.cost(v.detach()), C.detach(), rtol=EXACT, atol=0)
    assert distance(three_ways.gradient(v.detach()), torch.autograd.grad(C, v)[0]) < EXACT
    v, whole = three_ways.output_neuron(sample, seed=1), new_network(sample, seed=1)
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


def test_a_shared_value_has_the_gradient_of_autograd(sample, monkeypatch):
    x, y = batch(sample.train, 8)
    a = torch.linspace(-1, 1, 9, dtype=torch.float64).requires_grad_()
    expected = torch.autograd.grad((0.5 * torch.sin(a + a) ** 2).sum(), a)[0]
    assert distance(shared_nodes.added(a.detach()).uses.sum(dim=0), expected) < EXACT
    made, right = [], shared_nodes.initialize
    monkeypatch.setattr(shared_nodes, "initialize", lambda params, *rest: made.append(params) or right(params, *rest))
    weight, node = shared_nodes.weight(x, y, 0), shared_nodes.node(x, y, 0)
    for shared in (weight, node):
        assert shared.error_of_sum < AGREE
        assert shared.error_of_last > 0.1
    params = made[0]
    W, a = params["layer2.weight"].clone().requires_grad_(), x
    for l, used in ((1, params["layer1.weight"]), (2, W), (3, W), (4, params["layer4.weight"])):
        a = torch.sigmoid(F.linear(a, used, params[f"layer{l}.bias"]))
    C = 0.5 * F.mse_loss(a, F.one_hot(y, 10).double(), reduction="sum") / len(y)
    assert distance(weight.uses.sum(dim=0), torch.autograd.grad(C, W)[0].flatten()) < EXACT


def test_ranks_of_known_matrices():
    u, v = torch.randn(2, 3, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert fire_together.rank(u.T @ v) == fire_together.rank(1e-12 * u.T @ v) == 3
    assert fire_together.rank(torch.outer(u[0], v[0])) == 1
    assert fire_together.second(torch.outer(u[0], v[0])) < EXACT
    assert fire_together.second(torch.diag(torch.tensor([4.0, -2.0, 1.0]))) == pytest.approx(0.5)


def test_the_strongest_growth_joins_the_brightest_to_the_digits_neuron(settled, sample):
    known = torch.zeros(3, 4, 2)
    known[2, 1, 0], known[0, 3, 1], known[1, 1, 1] = 1, 1, -5
    assert [index.tolist() for index in fire_together.strongest(known)] == [[2, 0], [1, 3]]
    x, y = batch(sample.train, 50)
    each = [settled.params.split(-gradient_by_torch(settled, x[i : i + 1], y[i : i + 1])) for i in range(50)]
    j, k = fire_together.strongest(torch.stack([growth["layer3.weight"] for growth in each], dim=2))
    assert torch.equal(j, y)
    assert torch.equal(k, settled.backpropagate(x, y).outputs["layer2.a"].argmax(dim=1))


def test_a_step_for_one_and_a_step_for_all(monkeypatch, settled, sample):
    monkeypatch.setattr(one_example, "CHOICES", 4)
    x, y = batch(sample.train, 30)
    theta = settled.params.theta.clone()
    step = one_example.one_step(settled, x, y)
    assert torch.equal(settled.params.theta, theta)

    def change(move):
        return costs_by_torch(settled, theta + move, x, y) - costs_by_torch(settled, theta, x, y)

    moves = [-0.1 * gradient_by_torch(settled, x[i : i + 1], y[i : i + 1]) for i in range(4)]
    average = -gradient_by_torch(settled, x, y)
    average *= sum(move.norm() for move in moves) / 4 / average.norm()
    for i, move in enumerate(moves):
        assert distance(step.changes[i], change(move)) < 1e-9  # differences of costs near 1
    assert distance(step.averaged, change(average)) < 1e-9


def test_one_step_for_one_is_at_the_cost_of_others_only_once_the_outputs_have_settled(network, sample):
    changes = torch.tensor([[-4.0, 1.0, 2.0, -1.0], [3.0, -5.0, -2.0, -1.0]])  # by steps for the first two of four
    step = one_example.OneStep(changes, torch.zeros(4), torch.tensor([0, 1, 1, 0]))
    assert step.own.tolist() == [-4, -5]
    assert [change.tolist() for change in step.of_others] == [[1, 2], [3, -1]]
    assert (step.mean_of_others.tolist(), step.rising) == ([1.5, 1], 0.75)
    x, y = batch(sample.train, 500)
    predictions = network.outputs(x).argmax(dim=1)
    share = (predictions == predictions[0]).double().mean().item()
    assert one_example.called(network, x, predictions[0]) == share < 1
    assert one_example.called(network, x, predictions) == 1
    step = one_example.one_step(network, x, y)
    assert step.rising < 0.01, "at random initial values all want the same"
    assert step.averaged.mean() < 0
    measure.train_to(network, one_example.SETTLED, seed=1)
    step = one_example.one_step(network, x, y)
    assert (step.own < 0).all()
    assert (step.mean_of_others > 0).all()
    assert step.rising > 0.9
    assert step.averaged.mean() < 0


def test_listening_to_one_example_calls_everything_its_class(settled, sample):
    x, _ = batch(sample.test, 100)
    before = settled.state_dict()
    curve = one_example.alone(settled, 5, x)
    assert [step for step, _ in curve] == list(range(101))
    assert (curve[0][1], curve[-1][1]) == (one_example.called(settled, x, sample.train.y[5]), 1)
    after = settled.state_dict()
    assert after["steps"] == before["steps"]
    assert all(torch.equal(after["model"][name], tensor) for name, tensor in before["model"].items())


def test_the_same_seed_gives_the_same_report(sample, tmp_path):
    reports = [shared_nodes.run(sample, seed, tmp_path) for seed in (3, 3, 4)]
    assert (reports[0].table, reports[0].verdict) == (reports[1].table, reports[1].verdict)
    assert reports[0].table != reports[2].table


@pytest.mark.long
def test_mnist_and_its_sample_give_the_same_report(mnist_dir, sample, tmp_path):
    data = load("mnist", mnist_dir)
    for lesson in (three_ways, sensitivity):
        assert lesson.run(data, 0, tmp_path).table == lesson.run(sample, 0, tmp_path).table
