"""The lessons on training: batch sizes, learning rates, initial weights, cost functions."""

import math
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from torch import Tensor

from lessons import batch_sizes, cost_functions, initial_weights, learning_rates
from lessons.descent import descend
from lessons.lesson import FIGURE, REPORT, Report, teach
from lessons.measure import outputs
from lessons.runs import batch, first, learner
from manual_backprop.initializers import INITIALIZERS, WeightsAndBiases
from manual_backprop.layers.activations import ACTIVATIONS, Activation
from manual_backprop.losses import Quadratic, SigmoidCrossEntropy
from training.config import Config
from training.data import Dataset
from training.data.order import epoch_order
from training.families.configure import configure
from training.learners.manual import ManualLearner

LESSONS = ("batch-sizes", "learning-rates", "initial-weights", "cost-functions")


@pytest.fixture(scope="module")
def taught(sample: Dataset, tmp_path_factory: pytest.TempPathFactory):
    """Each lesson's report and directory; a lesson runs when it is first asked for."""
    reports: dict[str, Report] = {}
    parent = tmp_path_factory.mktemp("lessons")

    def report(name: str) -> tuple[Report, object]:
        if name not in reports:
            reports[name] = teach(name, sample, 0, parent / name)
        return reports[name], parent / name

    return report


@pytest.fixture
def few(sample: Dataset) -> Dataset:
    return first(sample, 200, 100)


def network_of(data: Dataset, **settings: object) -> ManualLearner:
    return learner(configure(**{"hidden": (7,), "dtype": "float64", **settings}), data)


def by_autograd(network: ManualLearner, x: Tensor, y: Tensor) -> Tensor:
    """The gradient of the network's cost, flat."""
    leaves = {name: p.clone().requires_grad_() for name, p in network.params.items()}
    C, _ = network.loss.forward(outputs(network.model, leaves, x), y)
    return torch.cat([g.flatten() for g in torch.autograd.grad(C, list(leaves.values()))])


def flat_sigmoid(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backward pass for which a sigmoid never saturates."""
    sigmoid = ACTIVATIONS["sigmoid"]
    monkeypatch.setitem(ACTIVATIONS, "sigmoid", Activation(sigmoid.value, lambda z, a: torch.full_like(a, 0.25)))


@pytest.mark.slow
@pytest.mark.parametrize("name", LESSONS)
def test_the_claim_holds(taught, name):
    report, run_dir = taught(name)
    assert report.holds, report.verdict
    assert {len(row) for row in report.table} == {len(report.table[0])}
    assert (run_dir / FIGURE).exists()
    assert (run_dir / REPORT).exists()


# Descent


def test_descent_yields_every_step_and_takes_them_in_the_loops_order(few):
    config = configure(hidden=(7,), batch_size=30, lr=0.5, dtype="float64")
    network, other = learner(config, few), learner(config, few)
    assert list(descend(network, 30, 0.5, epochs=2, seed=3)) == list(range(15))  # 7 batches of 200, the last of 20
    for epoch in (0, 1):
        for indices in epoch_order(3, epoch, 200).split(30):
            gradient = by_autograd(other, *few.train.batch(indices, torch.float64))
            other.params.theta.sub_(0.5 * gradient)
    torch.testing.assert_close(network.params.theta, other.params.theta, rtol=0, atol=1e-12)


# Batch sizes


def test_noise_law_is_exact_over_all_subsets(few):
    network = network_of(few)
    x, y = batch(few.train, 6)
    g = by_autograd(network, x, y)
    of_one = batch_sizes.noise_of_one(network, x, y)
    for size in range(1, 7):
        subsets = [list(subset) for subset in combinations(range(6), size)]
        squares = [(by_autograd(network, x[i], y[i]) - g).square().sum().item() for i in subsets]
        expected = sum(squares) / len(squares)
        assert batch_sizes.law(of_one, size, 6) == pytest.approx(expected, rel=1e-10, abs=1e-20)


def test_drawn_batches_obey_the_law(few):
    network = network_of(few)
    x, y = batch(few.train, 200)
    of_one, generator = batch_sizes.noise_of_one(network, x, y), torch.Generator().manual_seed(0)
    for size in (1, 20, 150):
        noise = batch_sizes.drawn_noise(network, x, y, size, generator)
        error = noise.std().item() / len(noise) ** 0.5
        assert noise.std() > 0
        assert abs(noise.mean().item() - batch_sizes.law(of_one, size, 200)) < 5 * error


def test_batches_average_to_the_gradient_unless_the_cost_is_no_mean(few, monkeypatch):
    network = network_of(few)
    x, y = batch(few.train, 200)
    assert batch_sizes.off_on_average(network, x, y, 10, seed=0) < batch_sizes.AGREE
    monkeypatch.setattr(Quadratic, "backward", lambda self, dC, cache: cache[0] * dC)  # the sum of the examples
    assert batch_sizes.off_on_average(network, x, y, 10, seed=0) > 0.5


def drawn(power: float, examples: int = 1000) -> dict[int, Tensor]:
    """Noises that go as Bᵖ, apart from the factor of drawing without putting back, with a spread of ten percent."""
    spread = 1 + 0.1 * torch.randn(batch_sizes.DRAWS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return {size: size**power * (examples - size) / (examples - 1) * spread for size in (1, 10, 100)}


@pytest.mark.parametrize("power", [-2.0, -1.0, -0.5, 0.0])
def test_exponent_is_found_with_its_error(power):
    k, error = batch_sizes.exponent(drawn(power), 1000)
    assert k == pytest.approx(power, abs=1e-12)
    logs = torch.log(torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64))
    of_mean = 0.1 / batch_sizes.DRAWS**0.5  # of each logarithm; an unweighted line's slope has σ / √Σ(x − x̄)²
    assert error == pytest.approx(of_mean / (logs - logs.mean()).square().sum().sqrt().item(), rel=0.1)


def test_path_is_recorded_with_the_true_cost(few, monkeypatch):
    monkeypatch.setattr(batch_sizes, "LOOKS", 2)
    course = batch_sizes.course(few, 40, 1.0, seed=0)
    assert course.steps == [0, 7, 14, 15]
    assert course.examples == [0, 280, 560, 600]
    network = learner(batch_sizes.NETWORK, few)
    x, y = batch(few.train, 200, torch.float32)
    for theta, cost in zip(course.thetas, course.costs, strict=True):
        network.params.theta.copy_(theta)
        output = outputs(network.model, network.params, x)
        own = 0.5 * (output - torch.eye(10)[y]).square().sum(dim=1).mean().item()
        assert cost == pytest.approx(own, rel=1e-5)
    assert course.costs[-1] < course.costs[0]


def course_to(cost: float, size: int) -> batch_sizes.Course:
    return batch_sizes.Course(size, 1.0, [0, 1], [1.0, cost], torch.zeros(2, 1), 0.0)


@pytest.mark.parametrize(
    ("off", "k", "miss", "small", "whole", "holds"),
    [
        (1e-15, -1.01, 0.03, 0.1, 0.4, True),
        (1e-3, -1.01, 0.03, 0.1, 0.4, False),
        (1e-15, -0.5, 0.03, 0.1, 0.4, False),
        (1e-15, -1.01, 0.5, 0.1, 0.4, False),
        (1e-15, -1.01, 0.03, 0.3, 0.4, False),
        (1e-15, -1.01, math.nan, 0.1, 0.4, False),
    ],
)
def test_batch_sizes_can_fail(off, k, miss, small, whole, holds):
    courses = [course_to(0.1, 1), course_to(small, 10), course_to(0.4, 100)]
    assert batch_sizes.confirmed(off, k, miss, courses, course_to(whole, 2000)) is holds


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


def test_small_steps_keep_the_promise_of_the_slope(few):
    network = network_of(few, init="standard-normal")
    x, y = batch(few.test, 100)
    before = network.params.theta.clone()
    small, tiny = (learning_rates.promise_kept(network, x, y, lr) for lr in (1e-2, 1e-4))
    assert abs(tiny - 1) < 1e-3
    assert abs(small - 1) == pytest.approx(100 * abs(tiny - 1), rel=0.2)  # what is left out is of second order
    assert abs(learning_rates.promise_kept(network, x, y, 100.0)) < 0.2
    assert torch.equal(network.params.theta, before)


def test_wrong_gradient_breaks_the_promise(few, monkeypatch):
    network = network_of(few, init="standard-normal")
    x, y = batch(few.test, 100)
    flat_sigmoid(monkeypatch)
    assert abs(learning_rates.promise_kept(network, x, y, 1e-4) - 1) > 0.1


def test_course_looks_at_start_and_end(few):
    config = replace(learning_rates.NETWORK, lr=1.0)
    course = learning_rates.course(learner(config, few), config, few)
    assert [look.step for look in course] == [0, 1, 2, 3, 4, 6, 7, 10, 13, 18, 24, 32, 42, 56, 60]


def test_gradient_dies_at_100_because_outputs_saturate(sample, monkeypatch):
    data = first(sample, 1000, 500)
    config = replace(learning_rates.NETWORK, lr=learning_rates.HIGH)
    course = learning_rates.course(learner(config, data), config, data)
    assert course[-1].gradient < learning_rates.DEAD * course[0].gradient
    assert course[-1].slope < 1e-3
    flat_sigmoid(monkeypatch)
    broken = learning_rates.course(learner(config, data), config, data)
    assert broken[-1].gradient > learning_rates.DEAD * broken[0].gradient


def looks(cost: float, accuracy: float, gradient: float) -> list[learning_rates.Look]:
    """From a cost of 2, one right in ten, and a gradient of 1."""
    return [learning_rates.Look(0, 2.0, 0.1, 0.1, 1.0), learning_rates.Look(9, cost, accuracy, 0.1, gradient)]


@pytest.mark.parametrize(
    ("low", "right", "high", "holds"),
    [
        ((1.7, 0.1, 0.9), (0.1, 0.8, 0.1), (0.5, 0.1, 1e-8), True),
        ((2.1, 0.1, 0.9), (0.1, 0.8, 0.1), (0.5, 0.1, 1e-8), False),  # does not even crawl
        ((1.7, 0.9, 0.9), (0.1, 0.8, 0.1), (0.5, 0.1, 1e-8), False),  # is not too low
        ((1.7, 0.1, 0.9), (0.1, 0.4, 0.1), (0.5, 0.1, 1e-8), False),  # does not learn
        ((1.7, 0.1, 0.9), (0.1, 0.8, 0.1), (0.5, 0.8, 1e-8), False),  # is not too high
        ((1.7, 0.1, 0.9), (0.1, 0.8, 0.1), (0.5, 0.1, 0.5), False),  # its gradient lives
    ],
)
def test_learning_rates_can_fail(low, right, high, holds):
    courses = dict(zip(learning_rates.RATES, (looks(*low), looks(*right), looks(*high)), strict=True))
    assert learning_rates.confirmed(courses) is holds


# Initial weights


def small(name: str, **settings: object) -> Config:
    return replace(initial_weights.EQUAL[name], epochs=1, **settings)


def test_neurons_hold_all_that_touches_them(few):
    params = network_of(few).params
    rows = initial_weights.neurons(params)
    assert rows.shape == (7, 784 + 1 + 10)
    assert rows.square().sum().item() == pytest.approx(
        (params.theta.square().sum() - params["layer2.bias"].square().sum()).item()
    )
    for name, place in (("layer1.weight", (3, 5)), ("layer1.bias", (3,)), ("layer2.weight", (8, 3))):
        params[name][place] += 1
        changed = initial_weights.neurons(params)
        assert (changed != rows).any(dim=1).tolist() == [j == 3 for j in range(7)]
        rows = changed


def test_difference_of_rows():
    assert initial_weights.difference(torch.zeros(3, 4)) == 0
    assert initial_weights.difference(torch.tensor([[1.0, 2.0], [1.0, 2.0]])) == 0
    assert initial_weights.difference(torch.tensor([[3.0, 0.0], [-3.0, 0.0]])) == 1
    assert initial_weights.difference(torch.tensor([[1.0], [3.0]])) == pytest.approx((2 / 10) ** 0.5)


def test_one_neuron_replaces_all_where_they_are_equal_and_only_there(few):
    x, _ = batch(few.test, 100)
    network = network_of(few)
    assert initial_weights.one_instead_of_all(network.model, network.params, x) > 0.01
    network.params["layer1.weight"].copy_(network.params["layer1.weight"][:1].clone().expand(7, -1))
    network.params["layer1.bias"].fill_(0.3)  # equal hidden neurons with unequal weights out
    assert initial_weights.one_instead_of_all(network.model, network.params, x) < 1e-14


def test_saturated():
    z = torch.tensor([0.0, 4.5, -4.5, 4.7, -4.7, 30.0, -800.0, 2.0])  # σ′(4.5) = 0.0109, σ′(4.7) = 0.0089
    assert initial_weights.saturated(z) == 0.5


@pytest.mark.parametrize(
    ("activation", "first_step", "later"),
    [
        ("sigmoid", {"layer2.weight", "layer2.bias"}, {"layer1.weight", "layer1.bias", "layer2.weight", "layer2.bias"}),
        ("tanh", {"layer2.bias"}, {"layer2.bias"}),
        ("relu", {"layer2.bias"}, {"layer2.bias"}),
    ],
)
def test_what_learns_from_zeros(few, activation, first_step, later):
    network = network_of(few, init="zeros", activation=(activation, "sigmoid"))
    moved = []
    for _ in descend(network, 10, 3.0, epochs=1, seed=0):
        assert moved or not network.params.theta.any()
        moved.append({name for name, p in network.params.items() if p.any()})
    assert moved[1] == first_step
    assert moved[-1] == later


@pytest.mark.parametrize("name", initial_weights.EQUAL)
def test_equal_neurons_get_equal_gradients(few, name):
    network = learner(small(name), few)
    for _ in descend(network, 10, 3.0, epochs=2, seed=0):
        gradient = by_autograd(network, *batch(few.train, 20))
        rows = initial_weights.neurons(network.params.split(gradient))
        assert initial_weights.difference(rows) < 1e-9
        assert initial_weights.difference(initial_weights.neurons(network.params)) < initial_weights.ROUNDING


def test_neurons_that_start_unequal_do_not_become_equal(sample, monkeypatch):
    def nearly_zero(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return 1e-3 * torch.randn(shape, generator=generator, dtype=torch.float64)

    data = first(sample, 2_000, 100)
    equal = initial_weights.course(small("zeros, sigmoid"), data)
    assert equal.early < initial_weights.ROUNDING
    assert equal.replaced < initial_weights.ROUNDING
    monkeypatch.setitem(INITIALIZERS, "zeros", WeightsAndBiases(nearly_zero, nearly_zero))
    broken = initial_weights.course(small("zeros, sigmoid"), data)
    assert broken.early > initial_weights.ROUNDING
    assert broken.replaced > initial_weights.ROUNDING


@pytest.mark.parametrize(("config", "s"), [(initial_weights.LARGE, 1.0), (initial_weights.FITTING, 784**-0.5)])
def test_size_of_z(sample, config, s):
    """E z² = s² ‖x‖² + 1, over many neurons."""
    data = first(sample, 10, 500)
    wide = replace(config, hidden=(2000,), epochs=1)
    z = initial_weights.course(wide, data).z
    x, _ = batch(data.test, 500)
    expected = s**2 * x.square().sum(dim=1).mean().item() + 1
    assert z.double().square().mean().item() == pytest.approx(expected, rel=0.15)


def test_what_a_course_says_of_the_digits(few):
    config = replace(initial_weights.FITTING, epochs=1, seed=2)
    course = initial_weights.course(config, few)
    network = learner(config, few)
    assert torch.equal(course.z, network.backpropagate(*batch(few.test, 100, torch.float32)).outputs["layer1"])
    for _ in descend(network, 10, config.lr, 1, 2):
        pass
    x, y = batch(few.test, 100, torch.float32)
    a = outputs(network.model, network.params, x)
    for digit in range(10):
        own = a[y == digit]
        assert course.recall[digit] == pytest.approx((own.argmax(1) == digit).double().mean().item())
        assert course.slope[digit].item() == pytest.approx((own[:, digit] * (1 - own[:, digit])).mean().item())
    assert course.lost == sum(part < 0.5 for part in course.recall.tolist()) > 0
    assert course.accuracies[0][0] == 0
    assert course.moved == list(network.params)


def outcome(
    accuracy: float = 0.9, lost: int = 0, z: float = 1.0, early: float = 1e-16, replaced: float = 1e-16, moved: str = ""
) -> initial_weights.Course:
    recall = torch.tensor([0.1] * lost + [0.9] * (10 - lost))
    differences = [(0, 0.0), (200, early), (1000, 0.5)]
    names = [*moved.split(), "layer2.bias"]
    return initial_weights.Course(
        torch.full((3, 2), z), differences, [(1000, accuracy)], replaced, names, torch.ones(10), recall
    )


GOOD = outcome()
BAD = outcome(accuracy=0.7, lost=1, z=9.0)


@pytest.mark.parametrize(
    ("equal", "large", "fitting", "holds"),
    [
        (GOOD, [BAD, BAD], [GOOD, GOOD], True),
        (outcome(early=1e-3), [BAD, BAD], [GOOD, GOOD], False),
        (outcome(replaced=1e-3), [BAD, BAD], [GOOD, GOOD], False),
        (outcome(moved="layer1.weight"), [BAD, BAD], [GOOD, GOOD], False),
        (GOOD, [BAD, outcome(accuracy=0.7, lost=1)], [GOOD, GOOD], False),  # not saturated
        (GOOD, [BAD, BAD], [GOOD, outcome(z=9.0)], False),
        (GOOD, [BAD, outcome(accuracy=1.0, lost=0, z=9.0)], [GOOD, GOOD], False),  # one lost digit may be chance
        (GOOD, [BAD, BAD], [outcome(accuracy=0.6), GOOD], True),
        (GOOD, [BAD, BAD], [outcome(accuracy=0.4), outcome(accuracy=0.4)], False),
        (GOOD, [BAD, BAD], [GOOD, outcome(lost=1)], False),
    ],
)
def test_initial_weights_can_fail(equal, large, fitting, holds):
    assert initial_weights.confirmed(dict.fromkeys(initial_weights.EQUAL, equal), large, fitting) is holds


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


def test_neuron_ends_where_nielsens_does():
    ends = {start: cost_functions.neuron(cost_functions.QUADRATIC, start)[0].costs for start in cost_functions.STARTS}
    outputs = [[(2 * cost) ** 0.5 for cost in (costs[0], costs[-1])] for costs in ends.values()]  # C = a²/2
    assert outputs == [pytest.approx([0.82, 0.09], abs=0.005), pytest.approx([0.98, 0.20], abs=0.005)]


def test_sigma_prime_is_what_the_costs_gradients_differ_by():
    for start in cost_functions.STARTS:
        a = 1 / (1 + math.exp(-sum(start)))
        quadratic, entropy = (cost_functions.neuron(cost, start)[0].delta for cost in cost_functions.COSTS)
        assert quadratic / entropy == pytest.approx(a * (1 - a), rel=1e-12)
        assert entropy == pytest.approx(a, rel=1e-12)


def test_half_is_when_half_of_the_cost_is_gone():
    assert cost_functions.Course([4.0, 3.0, 2.0, 1.0], 0.0).half == 2
    assert cost_functions.Course([4.0, 5.0, 3.0], 0.0).half == math.inf


def test_digits_start_from_shifted_outputs_and_stop_at_half(sample):
    data = first(sample, 500, 1)
    course = cost_functions.digits(cost_functions.ENTROPY, 6.0, data, seed=0)
    assert course.costs[-1] <= course.costs[0] / 2 < course.costs[-2]
    assert 45 < course.costs[0] < 65  # nine outputs that should be 0, at ln(1 + e⁶) = 6 each and a little around it
    assert course.delta == pytest.approx(0.9**0.5, rel=0.02)  # a − y is 1 for nine outputs of ten, and 0 for one


def without_sigma(monkeypatch: pytest.MonkeyPatch) -> None:
    sigmoid = ACTIVATIONS["sigmoid"]
    monkeypatch.setitem(ACTIVATIONS, "sigmoid", Activation(sigmoid.value, lambda z, a: torch.ones_like(a)))


def with_sigma(monkeypatch: pytest.MonkeyPatch) -> None:
    def backward(self, dC, cache):
        z, Y, count = cache
        a = torch.sigmoid(z)
        return (a - Y) * a * (1 - a) * (dC / count)

    monkeypatch.setattr(SigmoidCrossEntropy, "backward", backward)


@pytest.mark.parametrize(
    ("break_it", "cost"),
    [(without_sigma, cost_functions.QUADRATIC), (with_sigma, cost_functions.ENTROPY)],
    ids=["σ′ left out of the quadratic cost", "σ′ put into the cross-entropy"],
)
def test_cost_functions_notice_a_wrong_sigma_prime(monkeypatch, break_it, cost):
    course, error = cost_functions.neuron(cost, cost_functions.BADLY_WRONG)
    assert error < cost_functions.AGREE
    break_it(monkeypatch)
    broken, error = cost_functions.neuron(cost, cost_functions.BADLY_WRONG)
    assert error > cost_functions.AGREE
    assert (broken.half < course.half) == (cost == cost_functions.QUADRATIC)


@pytest.mark.slow
@pytest.mark.parametrize("break_it", [without_sigma, with_sigma])
def test_cost_functions_can_fail(sample, tmp_path, monkeypatch, break_it):
    break_it(monkeypatch)
    assert not cost_functions.run(sample, 0, tmp_path).holds


@pytest.mark.parametrize(
    ("quadratic", "entropy", "holds"),
    [
        (((10, 0.2), (80, 0.1)), ((5, 0.8), (6, 0.9)), True),
        (((10, 0.2), (20, 0.1)), ((5, 0.8), (6, 0.9)), False),  # does not slow down
        (((10, 0.2), (80, 0.3)), ((5, 0.8), (6, 0.9)), False),  # its δ does not shrink
        (((10, 0.2), (80, 0.1)), ((5, 0.8), (40, 0.9)), False),  # slows down too
        (((10, 0.2), (80, 0.1)), ((5, 0.8), (6, 0.7)), False),  # its δ does not grow
    ],
)
def test_costs_are_confirmed_by_both(quadratic, entropy, holds):
    def courses(pairs: tuple[tuple[int, float], ...]) -> list[cost_functions.Course]:
        return [cost_functions.Course([1.0] * half + [0.4], delta) for half, delta in pairs]

    found = dict(zip(cost_functions.COSTS, (courses(quadratic), courses(entropy)), strict=True))
    assert cost_functions.confirmed(found) is holds
