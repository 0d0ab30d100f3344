"""The lessons on where learning starts: initial weights, and cost functions that start badly wrong."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lessons import cost_functions, initial_weights
from lessons.descent import descend
from lessons.measure import outputs
from lessons.runs import batch, first, learner
from manual_backprop.initializers import INITIALIZERS, WeightsAndBiases
from manual_backprop.losses import SigmoidCrossEntropy
from tests.support.lesson_networks import by_autograd, network_of, with_slope
from training.config import Config


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


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu"])
def test_what_learns_from_zeros(few, activation):
    network = network_of(few, init="zeros", activation=(activation, "sigmoid"))
    moved = []
    for _ in descend(network, 10, 3.0, epochs=1, seed=0):
        assert moved or not network.params.theta.any()
        moved.append({name for name, p in network.params.items() if p.any()})
    after_one = {"layer2.weight", "layer2.bias"} if activation == "sigmoid" else {"layer2.bias"}
    assert moved[1] == after_one
    assert moved[-1] == (set(network.params) if activation == "sigmoid" else {"layer2.bias"})


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
    differences, names = [(0, 0.0), (200, early), (1000, 0.5)], [*moved.split(), "layer2.bias"]
    accuracies = [(1000, accuracy)]
    z = torch.full((3, 2), z)
    return initial_weights.Course(z, differences, accuracies, replaced, names, torch.ones(10), recall)


GOOD, BAD = outcome(), outcome(accuracy=0.7, lost=1, z=9.0)


@pytest.mark.parametrize(
    ("changed", "holds"),
    [
        pytest.param({}, True, id="as told"),
        pytest.param({"equal": outcome(early=1e-3)}, False, id="unequal early"),
        pytest.param({"equal": outcome(replaced=1e-3)}, False, id="not replaced by one"),
        pytest.param({"equal": outcome(moved="layer1.weight")}, False, id="the first layer moves"),
        pytest.param({"large": [BAD, outcome(accuracy=0.7, lost=1)]}, False, id="not saturated"),
        pytest.param({"fitting": [GOOD, outcome(z=9.0)]}, False, id="saturated all the same"),
        pytest.param({"large": [BAD, outcome(accuracy=1.0, z=9.0)]}, False, id="one lost digit may be chance"),
        pytest.param({"fitting": [outcome(accuracy=0.6), GOOD]}, True, id="better on average"),
        pytest.param({"fitting": [outcome(accuracy=0.4)] * 2}, False, id="no better"),
        pytest.param({"fitting": [GOOD, outcome(lost=1)]}, False, id="a digit lost all the same"),
    ],
)
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


def test_sigma_prime_is_what_the_costs_gradients_differ_by():
    for start in cost_functions.STARTS:
        a = 1 / (1 + math.exp(-sum(start)))
        quadratic, entropy = (cost_functions.neuron(cost, start)[0].delta for cost in cost_functions.COSTS)
        assert quadratic / entropy == pytest.approx(a * (1 - a), rel=1e-12)
        assert entropy == pytest.approx(a, rel=1e-12)


def test_digits_start_from_shifted_outputs_and_stop_at_half(sample):
    data = first(sample, 500, 1)
    course = cost_functions.digits(cost_functions.ENTROPY, 6.0, data, seed=0)
    assert course.costs[-1] <= course.costs[0] / 2 < course.costs[-2]
    assert 45 < course.costs[0] < 65  # nine outputs that should be 0, at ln(1 + e⁶) = 6 each and a little around it
    assert course.delta == pytest.approx(0.9**0.5, rel=0.02)  # a − y is 1 for nine outputs of ten, and 0 for one


def without_sigma(monkeypatch: pytest.MonkeyPatch) -> None:
    with_slope(monkeypatch, 1.0)


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


@pytest.mark.long
@pytest.mark.parametrize("break_it", [without_sigma, with_sigma])
def test_cost_functions_can_fail(sample, tmp_path, monkeypatch, break_it):
    break_it(monkeypatch)
    assert not cost_functions.run(sample, 0, tmp_path).holds


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({}, id="as told"),
        pytest.param({"quadratic": (20, 0.1)}, id="does not slow down"),
        pytest.param({"quadratic": (80, 0.3)}, id="its δ does not shrink"),
        pytest.param({"entropy": (40, 0.9)}, id="slows down too"),
        pytest.param({"entropy": (6, 0.7)}, id="its δ does not grow"),
    ],
)
def test_costs_are_confirmed_by_both(changed):
    """Steps to half of the cost, and δ: from the best start, and from the worst."""
    worst = {"quadratic": (80, 0.1), "entropy": (6, 0.9)} | changed

    def courses(*starts: tuple[int, float]) -> list[cost_functions.Course]:
        return [cost_functions.Course([1.0] * half + [0.4], delta) for half, delta in starts]

    found = {
        cost_functions.QUADRATIC: courses((10, 0.2), worst["quadratic"]),
        cost_functions.ENTROPY: courses((5, 0.8), worst["entropy"]),
    }
    assert cost_functions.confirmed(found) is (not changed)
