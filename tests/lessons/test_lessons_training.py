"""The lessons on where learning starts, and on how it goes: batch sizes and learning rates."""

import math
from dataclasses import replace
from itertools import combinations

import pytest
import torch

from gallery.parts import SigmaPrimeLeftIn, SumOfExamples
from lessons import batch_sizes, cost_functions, initial_weights, learning_rates
from lessons.descent import descend
from lessons.measure import outputs
from lessons.runs import batch, first, learner
from manual_backprop.initializers import INITIALIZERS, WeightsAndBiases
from manual_backprop.losses import Quadratic, SigmoidCrossEntropy
from tests.support.lesson_networks import by_autograd, network_of, with_slope


def test_neurons_hold_all_that_touches_them(few):
    params = network_of(few).params
    rows = initial_weights.neurons(params)
    assert rows.shape == (7, 784 + 1 + 10)
    all_but_last = (params.theta.square().sum() - params["layer2.bias"].square().sum()).item()
    assert rows.square().sum().item() == pytest.approx(all_but_last)
    for name, place in (("layer1.weight", (3, 5)), ("layer1.bias", (3,)), ("layer2.weight", (8, 3))):
        params[name][place] += 1
        changed = initial_weights.neurons(params)
        assert (changed != rows).any(dim=1).tolist() == [j == 3 for j in range(7)]
        rows = changed


def test_difference_of_rows_and_saturation():
    for rows, expected in (
        (torch.zeros(3, 4), 0),
        (torch.tensor([[1.0, 2.0], [1.0, 2.0]]), 0),
        (torch.tensor([[3.0, 0.0], [-3.0, 0.0]]), 1),
        (torch.tensor([[1.0], [3.0]]), (2 / 10) ** 0.5),
    ):
        assert initial_weights.difference(rows) == pytest.approx(expected, rel=1e-6, abs=0)
    z = torch.tensor([0.0, 4.5, -4.5, 4.7, -4.7, 30.0, -800.0, 2.0])  # σ′(4.5) = 0.0109, σ′(4.7) = 0.0089
    assert initial_weights.saturated(z) == 0.5


def test_one_neuron_replaces_all_where_they_are_equal_and_only_there(few):
    x, _ = batch(few.test, 100)
    network = network_of(few)
    assert initial_weights.one_instead_of_all(network.model, network.params, x) > 0.01
    network.params["layer1.weight"].copy_(network.params["layer1.weight"][:1].clone().expand(7, -1))
    network.params["layer1.bias"].fill_(0.3)  # equal hidden neurons with unequal weights out
    assert initial_weights.one_instead_of_all(network.model, network.params, x) < 1e-14


def test_equal_neurons_stay_equal_and_unequal_ones_do_not_become_equal(few, sample, monkeypatch):
    def nearly_zero(shape, generator):
        return 1e-3 * torch.randn(shape, generator=generator, dtype=torch.float64)

    equal = {name: replace(config, epochs=1) for name, config in initial_weights.EQUAL.items()}
    for name, config in equal.items():
        course = initial_weights.course(config, few)
        assert course.early < initial_weights.ROUNDING
        moving = ["layer1.weight", "layer1.bias", "layer2.weight", "layer2.bias"]
        assert course.moved == (moving[-1:] if name in initial_weights.STUCK else moving)
    data = first(sample, 2_000, 100)
    assert initial_weights.course(equal["zeros, sigmoid"], data).replaced < initial_weights.ROUNDING
    monkeypatch.setitem(INITIALIZERS, "zeros", WeightsAndBiases(nearly_zero, nearly_zero, nearly_zero))
    broken = initial_weights.course(equal["zeros, sigmoid"], data)
    assert min(broken.early, broken.replaced) > initial_weights.ROUNDING


def test_what_a_course_says_of_the_digits(few):
    config = replace(initial_weights.FITTING, epochs=1, seed=2)
    course, network = initial_weights.course(config, few), learner(config, few)
    x, y = batch(few.test, 100, torch.float32)
    assert torch.equal(course.z, network.backpropagate(x, y).outputs["layer1"])
    list(descend(network, 10, config.lr, 1, 2))
    a = outputs(network.model, network.params, x)
    for digit in range(10):
        own = a[y == digit]
        assert course.recall[digit] == pytest.approx((own.argmax(1) == digit).double().mean().item())
        assert course.slope[digit].item() == pytest.approx((own[:, digit] * (1 - own[:, digit])).mean().item())
    assert course.lost == sum(part < 0.5 for part in course.recall.tolist()) > 0
    assert course.accuracies[0][0] == 0
    assert course.moved == list(network.params)


def outcome(accuracy=0.9, lost=0, z=1.0, early=1e-16, replaced=1e-16, moved=()):
    recall = torch.tensor([0.1] * lost + [0.9] * (10 - lost))
    differences, names = [(0, 0.0), (200, early), (1000, 0.5)], [*moved, "layer2.bias"]
    z = torch.full((3, 2), z)
    return initial_weights.Course(z, differences, [(1000, accuracy)], replaced, names, torch.ones(10), recall)


GOOD, BAD = outcome(), outcome(accuracy=0.7, lost=1, z=9.0)
FOUND = {
    "as told": ({}, True),
    "unequal early": ({"equal": outcome(early=1e-3)}, False),
    "not replaced by one": ({"equal": outcome(replaced=1e-3)}, False),
    "the first layer moves": ({"equal": outcome(moved=["layer1.weight"])}, False),
    "not saturated": ({"large": [BAD, outcome(accuracy=0.7, lost=1)]}, False),
    "saturated all the same": ({"fitting": [GOOD, outcome(z=9.0)]}, False),
    "one lost digit may be chance": ({"large": [BAD, outcome(accuracy=1.0, z=9.0)]}, False),
    "better on average": ({"fitting": [outcome(accuracy=0.6), GOOD]}, True),
    "no better": ({"fitting": [outcome(accuracy=0.4)] * 2}, False),
    "a digit lost all the same": ({"fitting": [GOOD, outcome(lost=1)]}, False),
}


@pytest.mark.parametrize(("changed", "holds"), FOUND.values(), ids=FOUND)
def test_initial_weights_can_fail(changed, holds):
    found = {"equal": GOOD, "large": [BAD, BAD], "fitting": [GOOD, GOOD]} | changed
    equal = dict.fromkeys(initial_weights.EQUAL, found["equal"])
    assert initial_weights.confirmed(equal, found["large"], found["fitting"]) is holds


# Cost functions


@pytest.mark.parametrize("cost", cost_functions.COSTS)
@pytest.mark.parametrize("start", [*cost_functions.STARTS, (-1.3, 0.2)])
def test_neuron_agrees_with_autograd(cost, start):
    w, b = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in start)
    a = torch.sigmoid(w + b)
    C = 0.5 * a**2 if cost == cost_functions.QUADRATIC else -torch.log(1 - a)
    dw, db = torch.autograd.grad(C, (w, b))
    actual = cost_functions.backpropagate(cost, w.detach(), b.detach())
    for value, expected in zip(actual, (C, dw, db), strict=True):
        assert value.item() == pytest.approx(expected.item(), rel=1e-13)
    assert cost_functions.wiggle(cost, w.detach(), b.detach()) == pytest.approx(dw.item(), rel=1e-8)


def test_neuron_ends_where_nielsens_does_and_half_is_when_half_of_the_cost_is_gone():
    ends = {start: cost_functions.neuron(cost_functions.QUADRATIC, start)[0].costs for start in cost_functions.STARTS}
    outputs = [[(2 * cost) ** 0.5 for cost in (costs[0], costs[-1])] for costs in ends.values()]  # C = a²/2
    assert outputs == [pytest.approx([0.82, 0.09], abs=0.005), pytest.approx([0.98, 0.20], abs=0.005)]
    assert cost_functions.Course([4.0, 3.0, 2.0, 1.0], 0.0).half == 2
    assert cost_functions.Course([4.0, 5.0, 3.0], 0.0).half == math.inf


def test_digits_start_from_shifted_outputs_and_stop_at_half(sample):
    course = cost_functions.digits(cost_functions.ENTROPY, 6.0, first(sample, 500, 1), seed=0)
    assert course.costs[-1] <= course.costs[0] / 2 < course.costs[-2]
    assert 45 < course.costs[0] < 65  # nine outputs that should be 0, at ln(1 + e⁶) = 6 each and a little around it
    assert course.delta == pytest.approx(0.9**0.5, rel=0.02)  # a − y is 1 for nine outputs of ten, and 0 for one


def spoil(monkeypatch, cost):
    """Leave σ′ out of the quadratic cost's gradient, put it into the cross-entropy's."""
    if cost == cost_functions.QUADRATIC:
        with_slope(monkeypatch, 1.0)
    else:
        monkeypatch.setattr(SigmoidCrossEntropy, "backward", SigmaPrimeLeftIn.backward)


@pytest.mark.parametrize("cost", cost_functions.COSTS)
def test_sigma_prime_is_what_the_costs_gradients_differ_by_and_a_wrong_one_is_noticed(monkeypatch, cost):
    for start in cost_functions.STARTS:
        a = 1 / (1 + math.exp(-sum(start)))
        slope = a * (1 - a) if cost == cost_functions.QUADRATIC else 1
        assert cost_functions.neuron(cost, start)[0].delta == pytest.approx(a * slope, rel=1e-12)
    course, error = cost_functions.neuron(cost, cost_functions.BADLY_WRONG)
    assert error < cost_functions.AGREE
    spoil(monkeypatch, cost)
    broken, error = cost_functions.neuron(cost, cost_functions.BADLY_WRONG)
    assert error > cost_functions.AGREE
    assert (broken.half < course.half) == (cost == cost_functions.QUADRATIC)


CHANGED = {
    "as told": {},
    "does not slow down": {"quadratic": (20, 0.1)},
    "its δ does not shrink": {"quadratic": (80, 0.3)},
    "slows down too": {"entropy": (40, 0.9)},
    "its δ does not grow": {"entropy": (6, 0.7)},
}


@pytest.mark.parametrize("changed", CHANGED.values(), ids=CHANGED)
def test_costs_are_confirmed_by_both(changed):
    """Steps to half of the cost, and δ: from the best start, and from the worst."""
    worst = {"quadratic": (80, 0.1), "entropy": (6, 0.9)} | changed
    found = {
        cost_functions.QUADRATIC: [(10, 0.2), worst["quadratic"]],
        cost_functions.ENTROPY: [(5, 0.8), worst["entropy"]],
    }
    courses = {
        cost: [cost_functions.Course([1.0] * half + [0.4], delta) for half, delta in starts]
        for cost, starts in found.items()
    }
    assert cost_functions.confirmed(courses) is (not changed)


# Batch sizes


def test_noise_law_is_exact_over_all_subsets_and_obeyed_by_drawn_batches(few):
    network = network_of(few)
    x, y = batch(few.train, 6)
    g, of_one = by_autograd(network, x, y), batch_sizes.noise_of_one(network, x, y)
    for size in range(1, 7):
        subsets = [list(subset) for subset in combinations(range(6), size)]
        squares = [(by_autograd(network, x[i], y[i]) - g).square().sum().item() for i in subsets]
        expected = sum(squares) / len(squares)
        assert batch_sizes.law(of_one, size, 6) == pytest.approx(expected, rel=1e-10, abs=1e-20)
    x, y = batch(few.train, 200)
    of_one, generator = batch_sizes.noise_of_one(network, x, y), torch.Generator().manual_seed(0)
    for size in (1, 20, 150):
        noise = batch_sizes.drawn_noise(network, x, y, size, generator)
        error = noise.std().item() / len(noise) ** 0.5
        assert abs(noise.mean().item() - batch_sizes.law(of_one, size, 200)) < 5 * error


def test_batches_average_to_the_gradient_unless_the_cost_is_no_mean(few, monkeypatch):
    network, examples = network_of(few), batch(few.train, 200)
    assert batch_sizes.off_on_average(network, *examples, 10, seed=0) < batch_sizes.AGREE
    monkeypatch.setattr(Quadratic, "backward", SumOfExamples.backward)
    assert batch_sizes.off_on_average(network, *examples, 10, seed=0) > 0.5


@pytest.mark.parametrize("power", [-2.0, -1.0, -0.5, 0.0])
def test_exponent_is_found_with_its_error(power):
    """Of noises that go as Bᵖ, apart from the factor of drawing without putting back, with a spread of ten percent."""
    spread = 1 + 0.1 * torch.randn(batch_sizes.DRAWS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = {size: size**power * (1000 - size) / 999 * spread for size in (1, 10, 100)}
    k, error = batch_sizes.exponent(drawn, 1000)
    assert k == pytest.approx(power, abs=1e-12)
    logs = torch.log(torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64))
    of_mean = 0.1 / batch_sizes.DRAWS**0.5  # of each logarithm; an unweighted line's slope has σ / √Σ(x − x̄)²
    assert error == pytest.approx(of_mean / (logs - logs.mean()).square().sum().sqrt().item(), rel=0.1)


def test_path_is_recorded_with_the_true_cost(few, monkeypatch):
    monkeypatch.setattr(batch_sizes, "LOOKS", 2)
    course = batch_sizes.course(few, 40, 1.0, seed=0)
    assert (course.steps, course.examples) == ([0, 7, 14, 15], [0, 280, 560, 600])
    network = learner(batch_sizes.NETWORK, few)
    x, y = batch(few.train, 200, torch.float32)
    for theta, cost in zip(course.thetas, course.costs, strict=True):
        network.params.theta.copy_(theta)
        output = outputs(network.model, network.params, x)
        own = 0.5 * (output - torch.eye(10)[y]).square().sum(dim=1).mean().item()
        assert cost == pytest.approx(own, rel=1e-5)
    assert course.costs[-1] < course.costs[0]


@pytest.mark.parametrize(
    "changed", [{}, {"off": 1e-3}, {"k": -0.5}, {"miss": 0.5}, {"small": 0.3}, {"miss": math.nan}], ids=str
)
def test_batch_sizes_can_fail(changed):
    found = {"off": 1e-15, "k": -1.01, "miss": 0.03, "small": 0.1} | changed
    ends = {1: 0.1, 10: found.pop("small"), 100: 0.4, 2000: 0.4}
    *courses, whole = (
        batch_sizes.Course(size, 1.0, [0, 1], [1.0, cost], torch.zeros(2, 1), 0.0) for size, cost in ends.items()
    )
    assert batch_sizes.confirmed(**found, courses=courses, whole=whole) is (not changed)


# Learning rates


def test_look_agrees_with_autograd(few):
    network = network_of(few, init="standard-normal")
    x, y = batch(few.test, 100)
    seen = learning_rates.look(network, x, y)
    output = outputs(network.model, network.params, x)
    assert seen.step == 0
    assert seen.cost == pytest.approx(0.5 * (output - torch.eye(10)[y]).square().sum(dim=1).mean().item())
    assert seen.accuracy == (output.argmax(1) == y).sum().item() / 100
    z = torch.logit(output).requires_grad_()
    (slope,) = torch.autograd.grad(torch.sigmoid(z).sum(), z)
    assert seen.slope == pytest.approx(slope.mean().item())
    assert seen.gradient == pytest.approx(by_autograd(network, x, y).norm().item())


def test_small_steps_keep_the_promise_of_the_slope_and_a_wrong_gradient_breaks_it(few, monkeypatch):
    network = network_of(few, init="standard-normal")
    x, y = batch(few.test, 100)
    before = network.params.theta.clone()
    small, tiny = (learning_rates.promise_kept(network, x, y, lr) for lr in (1e-2, 1e-4))
    assert abs(tiny - 1) < 1e-3
    assert abs(small - 1) == pytest.approx(100 * abs(tiny - 1), rel=0.2)  # what is left out is of second order
    assert abs(learning_rates.promise_kept(network, x, y, 100.0)) < 0.2
    assert torch.equal(network.params.theta, before)
    with_slope(monkeypatch, 0.25)  # a sigmoid that never saturates
    assert abs(learning_rates.promise_kept(network, x, y, 1e-4) - 1) > 0.1


def test_course_looks_at_start_and_end_and_the_gradient_dies_at_100_because_outputs_saturate(few, sample, monkeypatch):
    config = replace(learning_rates.NETWORK, lr=1.0)
    course = learning_rates.course(learner(config, few), config, few)
    assert [look.step for look in course] == [0, 1, 2, 3, 4, 6, 7, 10, 13, 18, 24, 32, 42, 56, 60]
    data, config = first(sample, 1000, 500), replace(config, lr=learning_rates.HIGH)
    course = learning_rates.course(learner(config, data), config, data)
    assert course[-1].gradient < learning_rates.DEAD * course[0].gradient
    assert course[-1].slope < 1e-3
    with_slope(monkeypatch, 0.25)
    broken = learning_rates.course(learner(config, data), config, data)
    assert broken[-1].gradient > learning_rates.DEAD * broken[0].gradient


ENDS = {
    "as told": {},
    "too low: does not even crawl": {0: (2.1, 0.1, 0.9)},
    "too low: learns": {0: (1.7, 0.9, 0.9)},
    "right: does not learn": {1: (0.1, 0.4, 0.1)},
    "too high: learns": {2: (0.5, 0.8, 1e-8)},
    "too high: its gradient lives": {2: (0.5, 0.1, 0.5)},
}


@pytest.mark.parametrize("changed", ENDS.values(), ids=ENDS)
def test_learning_rates_can_fail(changed):
    """From a cost of 2, one right in ten, and a gradient of 1, to the cost, accuracy and gradient of each rate."""
    ends = {0: (1.7, 0.1, 0.9), 1: (0.1, 0.8, 0.1), 2: (0.5, 0.1, 1e-8)} | changed
    start = learning_rates.Look(0, 2.0, 0.1, 0.1, 1.0)
    courses = {
        rate: [start, learning_rates.Look(9, cost, accuracy, 0.1, gradient)]
        for rate, (cost, accuracy, gradient) in zip(learning_rates.RATES, ends.values(), strict=True)
    }
    assert learning_rates.confirmed(courses) is (not changed)
