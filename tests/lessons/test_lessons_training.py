"""The lessons on training: batch sizes and learning rates."""

import math
from dataclasses import replace
from itertools import combinations

import pytest
import torch

from gallery.parts import SumOfExamples
from lessons import batch_sizes, learning_rates
from lessons.measure import outputs
from lessons.runs import batch, first, learner
from manual_backprop.losses import Quadratic
from tests.support.lesson_networks import by_autograd, network_of, with_slope

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
