"""Central differences: no false alarm on right gradients, however steep, badly scaled or kinked; wrong ones fail."""

import math
from itertools import count
from types import SimpleNamespace

import pytest
import torch

from gallery.entry import normal
from gallery.right.slopes import KINKED, SMOOTH, Problem
from gradient_check import central_differences, check_function
from gradient_check.differences import measure, one_sided
from gradient_check.lines import measured
from gradient_check.verdict import judge_measured

SEEDS = range(4)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def judged(terms, point, gradient, seed=0, **options):
    said = measure(terms, point, gradient, generator=seeded(seed), **options)
    return SimpleNamespace(row=judge_measured(said, "g", "g", "differences"), checked=said.checked)


def gradient_of(terms, point):
    leaf = point.clone().requires_grad_()
    return torch.autograd.grad(terms(leaf).sum(), leaf)[0]


@pytest.mark.parametrize("name", SMOOTH)
def test_a_right_gradient_passes(name):
    for seed in SEEDS:
        terms, point = SMOOTH[name](Problem(seed))
        found = judged(terms, point, gradient_of(terms, point), seed)
        assert found.row.passed, (seed, found)
        if name not in ("saturated tanh", "saturated softmax", "logsumexp at 1e4", "cancellation at 1e6"):
            assert found.row.kinks == 0, (seed, found)


@pytest.mark.sweep(3)
@pytest.mark.parametrize("name", KINKED)
def test_a_right_gradient_at_kinks_passes_and_they_are_counted(name):
    for seed in SEEDS:
        terms, point, at_kink = KINKED[name](Problem(seed))
        found = judged(terms, point, gradient_of(terms, point), seed)
        assert found.row.passed, (seed, found)
        assert found.row.kinks == int(at_kink.sum()), (seed, found)


SPOILT = ("linear", "exp", "steep tanh", "points of 1e4", "points of 1e-4", "matrix", "relu within 1e-6", "quick sine")
SPOIL = {
    "sign": lambda right, i: -right,
    "zero": lambda right, i: 0 * right,
    "all by a little": lambda right, i: right + 0.01 * right.square().mean().sqrt() * normal(seeded(i), *right.shape),
    "one element by 1%": lambda right, i: right.index_put((torch.tensor(i),), 1.01 * right[i]),
    "one nan": lambda right, i: right.index_fill(0, torch.tensor(i), math.nan),
    "one infinite": lambda right, i: right.index_fill(0, torch.tensor(i), math.inf),
}


@pytest.mark.sweep(6)
@pytest.mark.parametrize("name", SPOILT)
@pytest.mark.parametrize("how", SPOIL)
def test_a_wrong_gradient_fails(name, how):
    for seed in SEEDS:
        terms, point = SMOOTH[name](Problem(seed))
        right = gradient_of(terms, point)
        assert right.any(), "nothing to spoil"
        i = int(right.abs().argmax())
        found = judged(terms, point, SPOIL[how](right, i), seed)
        assert (found.row.passed, bool(found.row.reason)) == (False, True), (seed, found)
        assert found.row.element_error > found.row.element_tolerance
        assert found.row.index == (i,) or not how.startswith("one")


def layer(seed):
    """relu(x Wᵀ), 10,000 weights."""
    generator = seeded(seed)
    W, x, d = normal(generator, 100, 100), normal(generator, 32, 100), normal(generator, 32, 100)

    terms = lambda W: (d.to(W.dtype) * torch.relu(x.to(W.dtype) @ W.T)).flatten()  # noqa: E731
    return terms, W, gradient_of(terms, W)


def test_directions_clear_ten_thousand_elements_and_not_all_are_looked_at_where_all_are_wrong():
    terms, W, gradient = layer(0)
    calls = []
    found = judged(lambda W: calls.append(0) or terms(W), W, gradient)
    assert (found.row.passed, found.checked) == (True, 0)
    assert len(calls) < 64
    assert found.row.element_tolerance < 1e-3
    wrong = judged(terms, W, -gradient)
    assert (wrong.row.passed, wrong.checked < 100, "left out" in wrong.row.origin) == (False, True, True), wrong


def test_one_element_of_ten_thousand_is_found_that_is_off_by_more_than_the_stated_tolerance():
    terms, W, gradient = layer(1)
    limit = judged(terms, W, gradient).row.element_tolerance
    for seed in range(5):
        i = int(torch.randint(10_000, (), generator=seeded(seed)))
        for error in (0.01, 2 * limit):
            wrong = gradient.clone()
            wrong.view(-1)[i] += error * gradient.square().mean().sqrt()
            found = judged(terms, W, wrong, seed)
            assert (found.row.passed, found.row.index, found.checked < 100) == (False, (i // 100, i % 100), True)
            assert found.row.element_error == pytest.approx(error, rel=1e-3)


def test_elements_that_rounding_blurs_as_much_as_a_direction_are_not_looked_at():
    """Each moves every summand, and the summands are large."""
    generator = seeded(5)
    A, x = normal(generator, 40, 500), normal(generator, 500)
    terms = lambda x: (A @ x).sin() + 1e6  # noqa: E731
    gradient = gradient_of(terms, x)
    found = judged(terms, x, gradient)
    assert (found.row.passed, found.checked, found.row.tolerance < 1e-3) == (True, 0, True)
    gradient[123] *= 1.2
    assert judged(terms, x, gradient).row.index == (123,)


def test_where_memory_is_short_a_sample_is_judged_and_named(monkeypatch):
    monkeypatch.setattr("gradient_check.differences.free_memory", lambda: 1e6)
    monkeypatch.setattr("gradient_check.differences.SAMPLE", 300)
    terms, W, gradient = layer(2)
    found = judged(terms, W, gradient)
    assert (found.row.passed, found.checked, " of 10,000 elements" in found.row.origin) == (True, 0, True), found
    wrong = judged(terms, W, gradient + torch.arange(100.0)[:, None])
    i, j = wrong.row.index
    assert (wrong.row.passed, wrong.row.actual - wrong.row.expected) == (False, pytest.approx(i)), wrong
    assert str([i, j]) in wrong.row.reason


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "accuracy"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_a_gradient_of_lower_precision_is_allowed_its_accuracy(dtype, accuracy):
    terms, W, gradient = layer(4)
    part, low = W[:3], gradient[:3].to(dtype)
    terms_of_part = lambda part: terms(torch.cat([part, W.new_zeros(97, 100)]))  # noqa: E731
    assert judged(terms_of_part, part, low, accuracy=accuracy).row.passed
    assert not judged(terms_of_part, part, low).row.passed
    assert not judged(terms_of_part, part, -low, accuracy=accuracy).row.passed


def windows(v):
    """Both may give their tie to the shared element, or either of them, or none; they bend opposite ways."""
    return torch.stack([1.2 * v[:2].max(), -0.5 * v[1:].max()])


def middle(v):
    """Of three equal ones, no one alone moves it, and any may claim it; the fourth never does."""
    return v.median()[None]


COS = math.cos(0.5)
CLAIMED = {  # name: (summands, point, claim → gradient, right claims, wrong ones)
    "between two slopes": (torch.relu, [0.5, 0.0, -2.0], lambda c: [1.0, c, 0.0], (0.0, 0.3, 1.0), (-0.01, 1.01)),
    "which of three": (middle, [0.5, 0.5, 0.5, 2.0, -1.0], lambda c: [float(i == c) for i in range(5)], (0, 2), (3,)),
    "a side for each summand": (windows, [1.0] * 3, lambda c: [0.0, c, 0.0], (1.2, -0.5, 0.7), (1.3, -0.6)),
    "equal values where f is smooth": (torch.sin, [0.5] * 4, lambda c: [COS, COS + c, COS, COS], (0.0,), (1e-6,)),
}


@pytest.mark.parametrize("name", CLAIMED)
def test_all_that_some_sides_give_is_right_and_nothing_else(name):
    terms, point, gradient, right, wrong = CLAIMED[name]
    for claim in (*right, *wrong):
        found = judged(terms, *(torch.tensor(v, dtype=torch.float64) for v in (point, gradient(claim))))
        assert found.row.passed is (claim in right), claim
        if name == "between two slopes":
            assert found.row.kinks == found.row.passed
            assert found.row.passed or (found.row.index == (1,) and "kink" in found.row.reason)


def test_places_between_equal_values_are_looked_for_only_so_often():
    calls = []
    terms = lambda v: calls.append(0) or v.view(40, 5).median(dim=1).values  # noqa: E731
    point = torch.full((200,), 0.5, dtype=torch.float64)
    found = judged(terms, point, (torch.arange(200) % 5 == 0).double())
    assert (found.row.passed, found.row.kinks, len(calls) < 30_000) == (True, 40, True)


def test_of_thousands_of_equal_kinks_some_speak_for_the_rest_and_what_is_smooth_is_judged_beside_them():
    calls, point = [], normal(seeded(3), 64, 64).relu()
    gradient = (point > 0).double()
    found = judged(lambda v: calls.append(0) or v.relu(), point, gradient)
    assert (found.row.passed, found.row.kinks, found.checked) == (True, int((point == 0).sum()), 8)
    assert (len(calls) < 400, "8 of 4096 elements, which speak for" in found.row.origin) == (True, True)
    i, j = (point > 0).nonzero()[77].tolist()
    spoilt = gradient.index_put((torch.tensor(i), torch.tensor(j)), torch.tensor(1.01).double())
    assert judged(torch.relu, point, spoilt).row.index == (i, j)
    assert not judged(torch.relu, point, torch.where(point == 0, 1.5, gradient)).row.passed


MEASURED = {"exp": 1e-8, "matrix": 1e-8, "relu within 1e-6": 1e-8, "relu of a matrix": 1e-8, "quick sine": 1e-5}


@pytest.mark.parametrize("name", MEASURED)
def test_a_gradient_is_measured(name):
    terms, point = SMOOTH[name](Problem(1))
    right = gradient_of(terms, point)
    found, uncertainty = measured(terms, point, most_calls=10_000)
    limit = MEASURED[name] * right.square().mean().sqrt()
    assert ((found - right).abs() <= uncertainty.clamp(max=limit)).all()
    assert uncertainty.max() < 100 * limit


def test_what_is_measured_says_where_it_knows_nothing():
    found, uncertainty = measured(lambda v: v.relu() + v.sqrt(), torch.tensor([0.0, 1.0]).double(), most_calls=100)
    assert (found.tolist(), uncertainty[0].item()) == (pytest.approx([0.0, 1.5]), math.inf)
    _, uncertainty = measured(torch.sin, normal(seeded(0), 101, 10), most_calls=200)
    assert uncertainty.isfinite().all(dim=1).nonzero().flatten().tolist() == [0, 25, 50, 75, 100]
    assert int(uncertainty.isfinite().sum()) == 50


def test_what_is_measured_obeys_the_clock(monkeypatch):
    monkeypatch.setattr("gradient_check.lines.perf_counter", count().__next__)  # a second for every element
    _, uncertainty = measured(torch.sin, normal(seeded(0), 500, 10), most_calls=10**6, until=44)
    known = uncertainty.isfinite().all(dim=1).nonzero().flatten()
    assert (len(known), known[[0, -1]].tolist()) == (4, [0, 499])


def test_a_step_finer_than_all_that_are_taken_is_as_steep_or_a_jump():
    terms = lambda v: (v / v.norm().clamp(min=1e-12)) * torch.tensor([1.0, 2.0, 3.0])  # noqa: E731
    point, right = torch.zeros(3, dtype=torch.float64), torch.tensor([1e12, 2e12, 3e12], dtype=torch.float64)
    assert judged(terms, point, right).row.passed
    assert not judged(terms, point, -right).row.passed


def test_what_is_said_of_a_wrong_element():
    point = torch.tensor([0.3, 0.7], dtype=torch.float64)
    found = judged(lambda v: v * torch.tensor([0.0, 2.0]), point, torch.zeros(2).double())
    assert "but the slope is 2" in found.row.reason
    assert found.row.relative_error == pytest.approx(1)
    constant = judged(lambda v: v.floor(), point, torch.ones(2).double())
    assert "forward is constant there" in constant.row.reason


def test_where_directions_are_of_no_use_few_elements_speak_for_the_rest():
    calls, point = [], torch.zeros(4000, dtype=torch.float64)
    found = judged(lambda v: calls.append(0) or v.relu(), point, 0 * point, enough=2)
    assert (found.row.passed, found.row.kinks) == (True, 4000)
    assert "which speak for 39" in found.row.origin
    assert len(calls) < 500


def layer_norm(x):
    x = x - x.mean(-1, keepdim=True)
    return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt()


def test_what_is_badly_conditioned_passes_as_with_a_reference():
    example = [1000 + normal(seeded(0), 16, 32).float()]
    assert check_function(layer_norm, example).passed


def test_edge_cases_end_when_their_time_does(monkeypatch):
    monkeypatch.setattr("gradient_check.trial.IN_CASES", -1.0)
    report = check_function(layer_norm, [normal(seeded(0), 2, 3)])
    assert report.passed
    assert any("edge cases were skipped from 'cotangent transposed' on" in note for note in report.notes)
    monkeypatch.setattr("gradient_check.trial.IN_CASES", 5.0)
    monkeypatch.setattr("gradient_check.trial.IN_ONE", -1.0)
    notes = check_function(lambda x: x.relu(), [torch.tensor([0.0, 1.0, -1.0]).double()]).notes
    assert any("x all zero: for want of time, differences were not asked for dx" in note for note in notes)


def test_one_sided_slopes():
    point = torch.tensor([[0.0, 0.7], [0.0, 4.0]], dtype=torch.float64)
    of = lambda a, b, c, d: torch.stack([3 * a.abs() + a, b.sin(), c.sqrt(), d.floor()])  # noqa: E731
    kink, smooth, border, jump = one_sided(lambda v: of(*v.flatten()), point, [(0, 0), (0, 1), (1, 0), (1, 1)])
    assert kink[:2] == pytest.approx((-2, 4))
    assert kink[2] < 1e-9
    assert smooth[:2] == pytest.approx((math.cos(0.7), math.cos(0.7)), abs=smooth[2])
    assert smooth[2] < 1e-6
    assert (*border[:2], jump[1]) == (-math.inf, math.inf, 0)
    assert jump[0] > 1e6


def test_what_is_moved_is_put_back():
    point = torch.tensor([0.0, 1.0], dtype=torch.float64).expand(3, 2)
    assert judged(lambda v: v.relu().flatten(), point, (point > 0).double()).row.kinks == 3
    assert point.tolist() == [[0.0, 1.0]] * 3
    v = torch.tensor([1.0, -2.0], dtype=torch.float64)
    assert central_differences(lambda: (v**3).sum(), v).tolist() == pytest.approx([3.0, 12.0], rel=1e-8)
    assert v.tolist() == [1.0, -2.0]


FEW = [torch.full(shape, 0.7, dtype=torch.float64) for shape in ((), (0,), (1, 1))]


@pytest.mark.parametrize("point", [*FEW, *(normal(seeded(seed), 2, 7, 5).float() for seed in SEEDS)])
def test_few_elements_and_single_precision(point):
    terms, gradient = lambda v: 3 * v.tanh().flatten(), 3 * (1 - point.tanh() ** 2)
    assert judged(terms, point, gradient).row.passed
    assert judged(terms, point, 1.5 * gradient).row.passed is (point.numel() == 0)
