"""The lessons about gradients hold, their measurements are right, and a wrong backward pass makes them fail."""

from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from gallery import perceptron as wrong_mlps
from lessons import fire_together, linear_backward, measure, one_example, sensitivity, shared_nodes, three_ways
from lessons.lesson import FIGURE, teach
from lessons.measure import AGREE, distance, new_network, outputs, train_to, wiggle
from lessons.runs import batch, first, train
from manual_backprop.tape import Tape
from training import checkpoint
from training.data import load
from training.families.configure import configure
from training.learners.manual import ManualLearner

EXACT = 1e-12  # of two computations of the same in float64
NAMES = ("three-ways", "sensitivity", "fire-together", "one-example", "shared-nodes", "linear-backward")


@pytest.fixture(scope="module", params=NAMES)
def taught(request, sample, tmp_path_factory):
    """A lesson's name, its report, and the directory it wrote."""
    run_dir = tmp_path_factory.mktemp("lesson") / "run"
    return request.param, teach(request.param, sample, 0, run_dir), run_dir


@pytest.mark.slow
def test_the_claim_holds(taught):
    name, report, run_dir = taught
    assert report.holds, report.verdict
    assert {len(row) for row in report.table} == {len(report.table[0])}
    assert (run_dir / FIGURE).stat().st_size > 10_000
    assert len(report.curves) == (30 if name == "one-example" else 0)


@pytest.fixture
def network(sample) -> ManualLearner:
    return new_network(first(sample, 1000, 100), seed=1)


@pytest.fixture
def settled(network) -> ManualLearner:
    """One whose outputs are all near 0.1."""
    train_to(network, one_example.SETTLED, seed=1)
    return network


def costs_with_autograd(network: ManualLearner, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    params = network.params.split(theta)
    for l in (1, 2, 3):
        x = torch.sigmoid(F.linear(x, params[f"layer{l}.weight"], params[f"layer{l}.bias"]))
    return F.mse_loss(x, F.one_hot(y, 10).double(), reduction="none").sum(dim=1)


def gradient_by_autograd(network: ManualLearner, x: Tensor, y: Tensor) -> Tensor:
    theta = network.params.theta.clone().requires_grad_()
    return torch.autograd.grad(costs_with_autograd(network, theta, x, y).mean(), theta)[0]


def with_model(monkeypatch: pytest.MonkeyPatch, lesson: ModuleType, wrong: type, factory: str = "new_network") -> None:
    """Give the lesson's network this model's backward pass."""
    right = getattr(lesson, factory)

    def make(*arguments) -> ManualLearner:
        network = right(*arguments)
        network.model = wrong(network.model.sizes, network.model.activations)
        return network

    monkeypatch.setattr(lesson, factory, make)


# What they measure with


def test_wiggling_finds_a_known_gradient():
    v = torch.tensor([[0.5, -1.0], [2.0, 0.0]], dtype=torch.float64)
    expected = 3 * v.flatten() ** 2
    assert_close(wiggle(lambda v: (v**3).sum(), v), expected, rtol=0, atol=1e-9)
    assert_close(wiggle(lambda v: (v**3).sum(), v, torch.tensor([2, 0])), expected[[2, 0]], rtol=0, atol=1e-9)


def test_wiggling_finds_the_gradients_of_several_costs():
    v = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    found = wiggle(lambda v: torch.stack([v.sum(), (v * v).sum()]), v)
    assert found.shape == (3, 2)
    assert_close(found, torch.stack([torch.ones_like(v), 2 * v], dim=1), rtol=0, atol=1e-9)


def test_a_distance_is_relative_to_what_is_expected():
    assert distance(torch.tensor([3.0, 4.5]), torch.tensor([3.0, 4.0])) == pytest.approx(0.1)


def test_costs_and_gradients_are_those_of_autograd(network, sample):
    x, y = batch(sample.train, 20)
    theta = network.params.theta
    assert distance(measure.costs(network, theta, x, y), costs_with_autograd(network, theta, x, y)) < EXACT
    assert distance(measure.gradient(network, x, y), gradient_by_autograd(network, x, y)) < EXACT


def test_training_goes_on_as_a_run_does(sample, tmp_path):
    data = first(sample, 350, 20)  # three full batches and a smaller one
    config = configure(hidden=(16, 16), loss="squared-error", lr=3.0, schedule="constant", dtype="float64", seed=4)
    train(configure(**{**config.__dict__, "max_steps": 9}), data, tmp_path / "run")
    network = new_network(data, seed=4)
    for steps in (0, 5, 9):
        train_to(network, steps, seed=4)
        assert network.steps == steps
    for name, tensor in checkpoint.load(tmp_path / "run")["model"].items():
        assert torch.equal(network.params[name], tensor), name


def test_outputs_are_those_of_the_learner_and_of_autograd(network, sample):
    x, y = batch(sample.train, 20)
    a = outputs(network.model, network.params, x)
    assert torch.equal(a, network.outputs(x))
    costs = (a - F.one_hot(y, 10)).square().sum(dim=1)
    assert distance(costs, costs_with_autograd(network, network.params.theta, x, y)) < EXACT


# three-ways


def test_the_neuron_has_the_gradient_of_autograd():
    v = torch.randn(33, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    C = (torch.sigmoid(v[0] + v[1:17] @ v[17:]) - 1) ** 2
    expected = torch.autograd.grad(C, v)[0]
    assert_close(three_ways.cost(v.detach()), C.detach(), rtol=EXACT, atol=0)
    assert distance(three_ways.gradient(v.detach()), expected) < EXACT


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


def test_a_nudge_moves_only_its_values_and_by_its_length(monkeypatch, sample):
    seen = []
    monkeypatch.setattr(three_ways, "cost", lambda v: seen.append(v) or v.sum())
    three_ways.changes(torch.zeros(33), slice(1, 17), torch.full((1, 16), 2.0), 0.5)
    (nudged,) = [v for v in seen if v.any()]
    assert nudged.norm().item() == pytest.approx(0.5)
    assert torch.equal(nudged[1:17], torch.full((16,), 0.125))


@pytest.mark.parametrize("seed", range(3))
def test_halving_a_nudge_quarters_the_error_of_a_right_gradient_only(sample, seed):
    v = three_ways.output_neuron(sample, seed)
    dv = three_ways.gradient(v)
    for where in three_ways.WAYS.values():
        right, off = three_ways.errors(v, dv, where), three_ways.errors(v, 1.01 * dv, where)
        assert right[-2] / right[-1] == pytest.approx(4, rel=0.02)
        assert off[-2] / off[-1] == pytest.approx(2, rel=0.05)


class OneWeightForgotten(wrong_mlps.SpelledMLP):
    """What it says is right to first order, but it does not say all."""

    def weight_gradient(self, l, delta, a_before, a, params):
        return super().weight_gradient(l, delta, a_before, a, params) * (torch.arange(16) < 15)


WRONG_NEURONS = [wrong_mlps.SlopeForgotten, wrong_mlps.SignOfDelta, wrong_mlps.BiasesDecay, OneWeightForgotten]


@pytest.mark.parametrize("wrong", WRONG_NEURONS)
def test_three_ways_notices_a_wrong_neuron(monkeypatch, sample, tmp_path, wrong):
    monkeypatch.setattr(three_ways, "DIRECTIONS", 10)
    monkeypatch.setattr(three_ways, "NEURON", wrong((16, 1), ("sigmoid",)))
    assert not three_ways.run(sample, 0, tmp_path).holds


# sensitivity


def test_the_pair_is_32_to_1_in_autograd_too(network, sample):
    x, y = batch(sample.train, 50)
    first, second = sensitivity.pair(network.params, measure.gradient(network, x, y))
    dtheta = gradient_by_autograd(network, x, y)
    assert (dtheta[first] / dtheta[second]).item() == pytest.approx(32, rel=1e-3)
    weights = network.params.vector(lambda name: float(name.endswith("weight"))).bool()
    assert weights[[first, second]].all()
    assert (dtheta[weights].abs() > dtheta[first].abs()).sum() < 100


def test_a_weight_is_named_by_its_place(network):
    params = network.params
    assert sensitivity.name_of(params, 0) == "W¹[0, 0]"
    assert sensitivity.name_of(params, 3 * 784 + 5) == "W¹[3, 5]"
    assert sensitivity.name_of(params, 16 * 785 + 2 * 16 + 7) == "W²[2, 7]"
    assert sensitivity.name_of(params, 16 * 785 + 16 * 17 + 9 * 16 + 15) == "W³[9, 15]"


def test_a_nudge_of_one_weight():
    theta = torch.tensor([2.0, 5.0, 1.0])
    assert sensitivity.change(lambda theta: (theta**2).sum(), theta, 1, 0.5) == 5.25
    assert theta.tolist() == [2, 5, 1]


def test_every_layer_takes_part(network):
    at = sensitivity.some_of_each_layer(network.params, seed=0)
    assert len(at.unique()) == len(at)
    assert sensitivity.layers_of(network.params)[at].long().bincount().tolist() == [0, 300, 16 * 17, 10 * 17]


@pytest.mark.parametrize("wrong", ["SlopeForgottenInOutputLayer", "BiasesDecay", "MeanTwice"])
def test_sensitivity_notices_a_wrong_gradient(monkeypatch, sample, tmp_path, wrong):
    with_model(monkeypatch, sensitivity, getattr(wrong_mlps, wrong))
    assert not sensitivity.run(sample, 0, tmp_path).holds


# fire-together


def test_an_outer_product_is_the_gradient_of_autograd(network, sample):
    x, y = batch(sample.train, 1)
    expected = network.params.split(gradient_by_autograd(network, x, y))
    for layer, product in fire_together.outer_products(network, x, y).items():
        assert distance(product, expected[f"{layer}.weight"]) < EXACT, layer
        assert fire_together.second(product) < EXACT, layer


@pytest.mark.parametrize("layer", ["layer2", "layer3"])
def test_wiggled_is_the_gradient_of_every_example(network, sample, layer):
    x, y = batch(sample.train, 3)
    found = fire_together.wiggled(network, layer, x, y)
    for i in range(3):
        expected = network.params.split(gradient_by_autograd(network, x[i : i + 1], y[i : i + 1]))
        assert distance(found[:, :, i], expected[f"{layer}.weight"]) < AGREE


def test_ranks_of_known_matrices():
    generator = torch.Generator().manual_seed(0)
    u, v = torch.randn(2, 3, 12, generator=generator, dtype=torch.float64)
    assert fire_together.rank(u.T @ v) == 3
    assert fire_together.rank(1e-12 * u.T @ v) == 3
    assert fire_together.rank(torch.outer(u[0], v[0])) == 1
    assert fire_together.second(torch.outer(u[0], v[0])) < EXACT
    assert fire_together.second(torch.diag(torch.tensor([4.0, -2.0, 1.0]))) == pytest.approx(0.5)


def test_the_strongest_growth_is_found_for_every_example():
    growth = torch.zeros(3, 4, 2)
    growth[2, 1, 0], growth[0, 3, 1], growth[1, 1, 1] = 1, 1, -5
    j, k = fire_together.strongest(growth)
    assert j.tolist() == [2, 0]
    assert k.tolist() == [1, 3]


def test_the_strongest_growth_joins_the_brightest_to_the_digits_neuron(settled, sample):
    x, y = batch(sample.train, 50)
    each = [settled.params.split(-gradient_by_autograd(settled, x[i : i + 1], y[i : i + 1])) for i in range(50)]
    j, k = fire_together.strongest(torch.stack([growth["layer3.weight"] for growth in each], dim=2))
    assert torch.equal(j, y)
    assert torch.equal(k, settled.backpropagate(x, y).outputs["layer2.a"].argmax(dim=1))


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["SlopeForgotten", "WeightGradientOfTheFirstExample"])
def test_fire_together_notices_a_wrong_gradient(monkeypatch, sample, tmp_path, wrong):
    monkeypatch.setattr(fire_together, "EXAMPLES", 20)
    monkeypatch.setattr(fire_together, "STEPS", 10)
    with_model(monkeypatch, fire_together, getattr(wrong_mlps, wrong))
    assert not fire_together.run(sample, 0, tmp_path).holds


# one-example


def test_what_one_step_changes_is_sorted_by_class():
    y = torch.tensor([0, 1, 1, 0])
    changes = torch.tensor([[-4.0, 1.0, 2.0, -1.0], [3.0, -5.0, -2.0, -1.0]])  # for the first two examples
    step = one_example.OneStep(changes, torch.zeros(4), y)
    assert step.own.tolist() == [-4, -5]
    assert [change.tolist() for change in step.of_others] == [[1, 2], [3, -1]]
    assert step.mean_of_others.tolist() == [1.5, 1]
    assert step.rising == 0.75


def test_a_step_for_one_and_a_step_for_all(monkeypatch, settled, sample):
    monkeypatch.setattr(one_example, "CHOICES", 4)
    x, y = batch(sample.train, 30)
    theta = settled.params.theta.clone()
    step = one_example.one_step(settled, x, y)
    assert torch.equal(settled.params.theta, theta)

    def change(move: Tensor) -> Tensor:
        return costs_with_autograd(settled, theta + move, x, y) - costs_with_autograd(settled, theta, x, y)

    moves = [-0.1 * gradient_by_autograd(settled, x[i : i + 1], y[i : i + 1]) for i in range(4)]
    average = -gradient_by_autograd(settled, x, y)
    average *= sum(move.norm() for move in moves) / 4 / average.norm()
    for i, move in enumerate(moves):
        assert distance(step.changes[i], change(move)) < 1e-9  # differences of costs near 1
    assert distance(step.averaged, change(average)) < 1e-9


def test_one_step_for_one_example_is_at_the_cost_of_others_once_the_outputs_have_settled(settled, sample):
    step = one_example.one_step(settled, *batch(sample.train, 500))
    assert (step.own < 0).all()
    assert (step.mean_of_others > 0).all()
    assert step.rising > 0.9
    assert step.averaged.mean() < 0


def test_at_random_initial_values_all_want_the_same(network, sample):
    step = one_example.one_step(network, *batch(sample.train, 500))
    assert step.rising < 0.01
    assert step.averaged.mean() < 0


def test_listening_to_one_example_calls_everything_its_class(settled, sample):
    x, _ = batch(sample.test, 100)
    before = settled.state_dict()
    curve = one_example.alone(settled, 5, x)
    assert [step for step, _ in curve] == list(range(101))
    assert curve[0][1] == one_example.called(settled, x, sample.train.y[5])
    assert curve[-1][1] == 1
    after = settled.state_dict()
    assert after["steps"] == before["steps"]
    assert all(torch.equal(after["model"][name], tensor) for name, tensor in before["model"].items())


def test_what_is_called_a_digit(network, sample):
    x, y = batch(sample.test, 100)
    predictions = network.evaluate(x, y)[1].argmax(dim=1)
    digit = int(predictions[0])
    assert one_example.called(network, x, torch.tensor(digit)) == (predictions == digit).double().mean().item()
    assert one_example.called(network, x, predictions) == 1


@pytest.fixture
def smaller(monkeypatch) -> None:
    """one-example on fewer examples, on which it holds as well."""
    for name, value in {"STAGES": (0, 30, 40), "EXAMPLES": 300, "PICTURES": 50}.items():
        monkeypatch.setattr(one_example, name, value)


@pytest.mark.slow
def test_one_example_holds_on_fewer_examples(smaller, sample, tmp_path):
    assert one_example.run(sample, 0, tmp_path).holds


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["SignOfDelta", "LastExampleLost"])
def test_one_example_notices_a_wrong_gradient(monkeypatch, smaller, sample, tmp_path, wrong):
    with_model(monkeypatch, one_example, getattr(wrong_mlps, wrong))
    assert not one_example.run(sample, 0, tmp_path).holds


@pytest.mark.slow
def test_one_example_notices_an_example_that_gets_nothing(monkeypatch, smaller, sample, tmp_path):
    one = batch(sample.train, 8)[0][7:]
    right = measure.gradient
    monkeypatch.setattr(one_example, "gradient", lambda network, x, y: right(network, x, y) * (not torch.equal(x, one)))
    assert not one_example.run(sample, 0, tmp_path).holds


@pytest.mark.slow
def test_one_example_notices_when_all_are_listened_to(monkeypatch, smaller, sample, tmp_path):
    """The step for one is that for all: then it does not raise the costs of others."""
    everything = batch(sample.train, 300)
    monkeypatch.setattr(one_example, "gradient", lambda network, x, y: measure.gradient(network, *everything))
    assert not one_example.run(sample, 0, tmp_path).holds


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
    W = params["layer2.weight"].clone().requires_grad_()
    a = torch.sigmoid(F.linear(x, params["layer1.weight"], params["layer1.bias"]))
    a = torch.sigmoid(F.linear(a, W, params["layer2.bias"]))
    a = torch.sigmoid(F.linear(a, W, params["layer3.bias"]))
    a = torch.sigmoid(F.linear(a, params["layer4.weight"], params["layer4.bias"]))
    C = 0.5 * F.mse_loss(a, F.one_hot(y, 10).double(), reduction="sum") / len(y)
    assert distance(uses.sum(dim=0), torch.autograd.grad(C, W)[0].flatten()) < EXACT


def test_errors_of_the_sum_and_of_the_last_use():
    shared = shared_nodes.Shared("v", torch.tensor([[1.0, 0.0], [2.0, 4.0]]), torch.tensor([3.0, 4.0]))
    assert shared.error_of_sum == 0
    assert shared.error_of_last == pytest.approx(0.2)


@pytest.mark.parametrize("wrong", ["SlopeForgotten", "SlopeTwice"])
def test_shared_nodes_notices_a_wrong_gradient(monkeypatch, sample, tmp_path, wrong):
    monkeypatch.setattr(shared_nodes, "MLP", getattr(wrong_mlps, wrong))
    assert not shared_nodes.run(sample, 0, tmp_path).holds


def test_shared_nodes_notices_a_use_that_is_left_out(monkeypatch, sample, tmp_path):
    monkeypatch.setattr(shared_nodes.Shared, "error_of_sum", shared_nodes.Shared.error_of_last)
    assert not shared_nodes.run(sample, 0, tmp_path).holds


# linear-backward


class Clipped(wrong_mlps.SpelledMLP):
    """A backward pass that is not linear."""

    def delta(self, l, da, z, a):
        return super().delta(l, da, z, a).clamp(-0.1, 0.1)


class Biased(wrong_mlps.SpelledMLP):
    """One that is affine, by very little."""

    def da_before(self, l, delta, params):
        return super().da_before(l, delta, params) + 1e-9


def test_deviation_from_superposition():
    u, v = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    assert linear_backward.deviation(u + v, u + v) == 0
    assert linear_backward.deviation(u, u + v) == pytest.approx(0.2)


@pytest.mark.parametrize("wrong", [Clipped, Biased])
def test_linear_backward_notices_what_is_not_linear(monkeypatch, sample, tmp_path, wrong):
    with_model(monkeypatch, linear_backward, wrong, factory="learner")
    assert not linear_backward.run(sample, 0, tmp_path).holds


def test_linear_backward_notices_a_forward_pass_that_adds_up(monkeypatch, sample, tmp_path):
    """With a linear forward pass nothing would be said of a difference between the two."""
    network = linear_backward.learner(linear_backward.NETWORK, sample)
    linear = type(network.model)(network.model.sizes, ("identity",) * 3)
    for name, tensor in network.params.items():
        if name.endswith("bias"):
            tensor.zero_()
    network.model = linear
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
    reports = [sensitivity.run(sample, seed, tmp_path) for seed in (3, 3, 4)]
    assert reports[0].table == reports[1].table
    assert reports[0].verdict == reports[1].verdict
    assert reports[0].table != reports[2].table


@pytest.mark.slow
def test_mnist_and_its_sample_give_the_same_report(mnist_dir, sample, tmp_path):
    data = load("mnist", mnist_dir)
    for lesson in (three_ways, sensitivity):
        assert lesson.run(data, 0, tmp_path).table == lesson.run(sample, 0, tmp_path).table
