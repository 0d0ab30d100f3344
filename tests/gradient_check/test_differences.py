"""Central differences: no false alarm on right gradients, however steep, badly scaled or kinked; wrong ones fail."""

import math

import pytest
import torch
from torch import Tensor

from gradient_check import central_differences
from gradient_check.differences import judge_slopes, one_sided

SEEDS = range(4)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def gradient_of(terms, point: Tensor) -> Tensor:
    leaf = point.clone().requires_grad_()
    return torch.autograd.grad(terms(leaf).sum(), leaf)[0]


class Problem:
    """Random numbers that the functions below are made of."""

    def __init__(self, seed: int) -> None:
        generator = seeded(seed)
        self.n = int(torch.randint(1, 40, (), generator=generator))
        self.c, self.d, self.v = (normal(generator, self.n) for _ in range(3))
        self.W = normal(generator, 17, self.n)


SMOOTH = {  # name: (summands, point)
    "linear": lambda p: (lambda x: p.c * x, p.v),
    "exp": lambda p: (lambda x: p.c * torch.exp(3 * x), p.v),
    "steep tanh": lambda p: (lambda x: p.c * torch.tanh(50 * x), p.v * 0.1),
    "saturated tanh": lambda p: (lambda x: p.c * torch.tanh(50 * x), p.v),
    "points of 1e4": lambda p: (lambda x: p.c * x * x.sin(), p.v * 1e4),
    "points of 1e-4": lambda p: (lambda x: p.c * (1e4 * x).sin(), p.v * 1e-4),
    "log of 1e-4": lambda p: (lambda x: p.c * x.log(), p.v.abs() * 1e-4 + 1e-7),
    "cancellation at 1e6": lambda p: (lambda x: p.c * ((x + 1e6) - 1e6) ** 2, p.v),
    "cancellation at 1e7": lambda p: (lambda x: p.c * ((x + 1e7) - 1e7) ** 2, p.v),
    "logsumexp at 1e4": lambda p: (lambda x: (torch.logsumexp(x + 1e4, 0) - 1e4)[None], p.v),
    "saturated softmax": lambda p: (lambda x: p.c * torch.softmax(30 * x, 0), p.v),
    "matrix": lambda p: (lambda x: torch.tanh(p.W @ x), p.v),
    "float32 inside": lambda p: (lambda x: p.c * torch.tanh(x.float()).double(), p.v),
    "float32 matrix inside": lambda p: (lambda x: torch.tanh(p.W.float() @ x.float()).double(), p.v),
    "fourth power at 0": lambda p: (lambda x: (p.W @ x) ** 4, p.v * 0),
    "constant": lambda p: (lambda x: p.c + 0 * x, p.v),
    "shift before normalization": lambda p: (lambda x: ((x - x.mean()) * p.d).flatten() * p.c.sum(), p.v),
    "quick sine": lambda p: (lambda x: p.c * (1e3 * x).sin(), p.v),
    "root near 0": lambda p: (lambda x: p.c * x.abs().sqrt(), p.v * 1e-3),
    "relu within 1e-4": lambda p: (lambda x: p.c * x.relu(), p.d.sign() * 1e-4),
    "relu within 1e-6": lambda p: (lambda x: p.c * x.relu(), p.d.sign() * 1e-6),
    "relu within 1e-8": lambda p: (lambda x: p.c * x.relu(), p.d.sign() * 1e-8),
    "relu of a matrix": lambda p: (lambda x: torch.relu(p.W @ x), p.v),
    "thousands of relus": lambda p: (lambda x: torch.relu(torch.linspace(-3, 3, 4001) * x[0] + p.c[0]), p.v),
    "stairs": lambda p: (lambda x: p.c * x.floor(), p.v),
}
KINKED = {  # name: (summands, point, where the kinks are)
    "relu at 0": lambda p: (lambda x: p.c * x.relu(), p.v * 0, p.v == p.v),
    "relu within 1e-12": lambda p: (lambda x: p.c * x.relu(), p.d.sign() * 1e-12, p.v == p.v),
    "abs at some 0": lambda p: (lambda x: p.c * x.abs() + x, p.v.relu(), p.v <= 0),
    "tie in max": lambda p: (lambda x: p.c * torch.maximum(x, p.d), torch.where(p.v > 0, p.d, p.v), p.v > 0),
    "clamp at its limits": lambda p: (
        lambda x: p.c * x.clamp(-1, 1),
        torch.where(p.v.abs() > 1, p.v.sign(), p.v),
        p.v.abs() > 1,
    ),
    "a jump": lambda p: (lambda x: p.c * x.floor() + x, p.v.round(), p.v == p.v),
    "sqrt at 0": lambda p: (lambda x: p.c * x.sqrt(), p.v.relu(), p.v <= 0),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_a_right_gradient_passes(name):
    for seed in SEEDS:
        terms, point = SMOOTH[name](Problem(seed))
        found = judge_slopes(terms, point, gradient_of(terms, point), generator=seeded(seed))
        assert found.passed, (seed, found)
        if name not in ("saturated tanh", "saturated softmax", "logsumexp at 1e4", "cancellation at 1e6"):
            assert found.kink_count == 0, (seed, found)


@pytest.mark.sweep(3)
@pytest.mark.parametrize("name", KINKED)
def test_a_right_gradient_at_kinks_passes_and_they_are_named(name):
    for seed in SEEDS:
        terms, point, at_kink = KINKED[name](Problem(seed))
        found = judge_slopes(terms, point, gradient_of(terms, point), generator=seeded(seed))
        assert found.passed, (seed, found)
        assert found.kinks == tuple((int(i),) for i in at_kink.nonzero()), (seed, found)


@pytest.mark.sweep(6)
@pytest.mark.parametrize(
    "name",
    ["linear", "exp", "steep tanh", "points of 1e4", "points of 1e-4", "matrix", "relu within 1e-6", "quick sine"],
)
@pytest.mark.parametrize(
    ("spoil", "found_at"),
    [
        (lambda right, i: -right, False),
        (lambda right, i: 0 * right, False),
        (lambda right, i: right + 0.01 * right.square().mean().sqrt() * normal(seeded(i), *right.shape), False),
        (lambda right, i: right.index_put((torch.tensor(i),), 1.01 * right[i]), True),
        (lambda right, i: right.index_fill(0, torch.tensor(i), math.nan), True),
        (lambda right, i: right.index_fill(0, torch.tensor(i), math.inf), True),
    ],
    ids=["sign", "zero", "all by a little", "one element by 1%", "nan", "infinite"],
)
def test_a_wrong_gradient_fails(name, spoil, found_at):
    for seed in SEEDS:
        terms, point = SMOOTH[name](Problem(seed))
        right = gradient_of(terms, point)
        assert right.any(), "nothing to spoil"
        i = int(right.abs().argmax())
        found = judge_slopes(terms, point, spoil(right, i), generator=seeded(seed))
        assert not found.passed, (seed, found)
        assert found.reason
        assert found.element_error > found.element_tolerance
        if found_at:
            assert found.index == (i,)


def layer(seed: int):
    """relu(x Wᵀ), 10,000 weights."""
    generator = seeded(seed)
    W, x, d = normal(generator, 100, 100), normal(generator, 32, 100), normal(generator, 32, 100)

    def terms(W: Tensor) -> Tensor:
        return (d.to(W.dtype) * torch.relu(x.to(W.dtype) @ W.T)).flatten()

    return terms, W, gradient_of(terms, W)


def test_directions_clear_ten_thousand_elements():
    terms, W, gradient = layer(0)
    calls = []
    found = judge_slopes(lambda W: calls.append(0) or terms(W), W, gradient, generator=seeded(0))
    assert found.passed
    assert found.checked == 0
    assert len(calls) < 64
    assert found.element_tolerance < 1e-3


def test_one_element_of_ten_thousand_that_is_off_by_a_percent_is_found():
    terms, W, gradient = layer(1)
    for seed in range(5):
        i = int(torch.randint(10_000, (), generator=seeded(seed)))
        wrong = gradient.clone()
        wrong.view(-1)[i] += 0.01 * gradient.square().mean().sqrt()
        found = judge_slopes(terms, W, wrong, generator=seeded(seed))
        assert not found.passed
        assert found.index == (i // 100, i % 100)
        assert found.element_error == pytest.approx(0.01, rel=1e-3)
        assert found.checked < 100


def test_what_directions_clear_is_within_the_stated_tolerance():
    """A wrong element that passes is not off by more than the element tolerance says."""
    terms, W, gradient = layer(2)
    rms = gradient.square().mean().sqrt()
    limit = judge_slopes(terms, W, gradient, generator=seeded(0)).element_tolerance
    for seed in range(5):
        wrong = gradient.clone()
        wrong[seed, 3 * seed] += 2 * limit * rms
        assert not judge_slopes(terms, W, wrong, generator=seeded(seed)).passed


def test_a_gradient_that_is_wrong_everywhere_is_not_looked_at_everywhere():
    terms, W, gradient = layer(3)
    found = judge_slopes(terms, W, -gradient, generator=seeded(0))
    assert not found.passed
    assert found.checked < 100
    assert "left out" in found.origin


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "accuracy"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_a_gradient_of_lower_precision_is_allowed_its_accuracy(dtype, accuracy):
    terms, W, gradient = layer(4)
    W, gradient = W[:3], gradient[:3]
    terms_of_part = lambda part: terms(torch.cat([part, W.new_zeros(97, 100)]))  # noqa: E731
    low = gradient.to(dtype)
    assert judge_slopes(terms_of_part, W, low, accuracy=accuracy, generator=seeded(0)).passed
    assert not judge_slopes(terms_of_part, W, low, generator=seeded(0)).passed
    assert not judge_slopes(terms_of_part, W, -low, accuracy=accuracy, generator=seeded(0)).passed


def test_a_point_in_float32():
    for seed in SEEDS:
        generator = seeded(seed)
        point, c = normal(generator, 7, 5).float(), normal(generator, 7, 5).float()
        terms = lambda x, c=c: (c * torch.tanh(x)).flatten()  # noqa: E731
        gradient = gradient_of(terms, point)
        assert judge_slopes(terms, point, gradient, generator=generator).passed
        assert not judge_slopes(terms, point, 1.5 * gradient, generator=generator).passed


@pytest.mark.parametrize(("slope", "passed"), [(0.0, True), (0.3, True), (1.0, True), (-0.01, False), (1.01, False)])
def test_at_a_kink_every_slope_between_is_right_and_no_other(slope, passed):
    terms, point = torch.relu, torch.tensor([0.5, 0.0, -2.0], dtype=torch.float64)
    gradient = torch.tensor([1.0, slope, 0.0], dtype=torch.float64)
    found = judge_slopes(terms, point, gradient, generator=seeded(0))
    assert found.passed is passed
    assert found.kink_count == passed
    if not passed:
        assert found.index == (1,)
        assert "kink" in found.reason


def test_one_sided_slopes():
    point = torch.tensor([[0.0, 0.7], [0.0, 4.0]], dtype=torch.float64)

    def terms(v: Tensor) -> Tensor:
        return torch.stack([3 * v[0, 0].abs() + v[0, 0], v[0, 1].sin(), v[1, 0].sqrt(), v[1, 1].floor()])

    kink, smooth, border, jump = one_sided(terms, point, [(0, 0), (0, 1), (1, 0), (1, 1)])
    assert kink[:2] == pytest.approx((-2, 4))
    assert kink[2] < 1e-9
    assert smooth[:2] == pytest.approx((math.cos(0.7), math.cos(0.7)), abs=smooth[2])
    assert smooth[2] < 1e-6
    assert border[:2] == (-math.inf, math.inf)
    assert jump[0] > 1e6
    assert jump[1] == 0


def test_the_point_stays_as_it_is():
    point = torch.tensor([0.0, 1.0], dtype=torch.float64).expand(3, 2)
    before = point.clone()
    gradient = (point > 0).double()
    found = judge_slopes(lambda v: v.relu().flatten(), point, gradient, generator=seeded(0))
    assert found.passed
    assert found.kinks == ((0, 0), (1, 0), (2, 0))
    assert torch.equal(point, before)


@pytest.mark.parametrize("shape", [(), (0,), (1, 1)])
def test_few_elements(shape):
    point = normal(seeded(0), *shape)
    assert judge_slopes(lambda v: v.flatten() ** 2, point, 2 * point, generator=seeded(0)).passed
    wrong = judge_slopes(lambda v: v.flatten() ** 2, point, 3 * point, generator=seeded(0))
    assert wrong.passed is (point.numel() == 0)


def test_bad_input():
    with pytest.raises(ValueError, match=r"shape \(3,\), not \(2,\)"):
        judge_slopes(torch.relu, torch.zeros(2), torch.zeros(3), generator=seeded(0))
    with pytest.raises(ValueError, match=r"floating-point tensor, not torch\.int64"):
        judge_slopes(torch.relu, torch.zeros(2, dtype=torch.long), torch.zeros(2), generator=seeded(0))


def test_central_differences_of_a_cubic_restore_what_they_move():
    v = torch.tensor([1.0, -2.0], dtype=torch.float64)
    assert central_differences(lambda: (v**3).sum(), v).tolist() == pytest.approx([3.0, 12.0], rel=1e-8)
    assert v.tolist() == [1.0, -2.0]


@pytest.mark.parametrize(("claimed", "passed"), [(0, True), (2, True), (3, False)])
def test_where_three_are_equal_any_of_them_may_be_the_middle_one(claimed, passed):
    """No element alone moves the median there; the fourth never does."""
    point, gradient = torch.tensor([0.5, 0.5, 0.5, 2.0, -1.0], dtype=torch.float64), torch.zeros(5).double()
    gradient[claimed] = 1.0
    found = judge_slopes(lambda v: v.median()[None], point, gradient, generator=seeded(0))
    assert found.passed is passed


def test_equal_values_excuse_nothing_where_f_is_smooth():
    point = torch.full((4,), 0.5, dtype=torch.float64)
    gradient = gradient_of(torch.sin, point)
    assert judge_slopes(torch.sin, point, gradient, generator=seeded(0)).passed
    gradient[1] += 1e-6
    assert not judge_slopes(torch.sin, point, gradient, generator=seeded(0)).passed


@pytest.mark.parametrize(("claim", "passed"), [(1.2, True), (-0.5, True), (0.7, True), (1.3, False), (-0.6, False)])
def test_each_summand_may_take_a_side_of_its_own(claim, passed):
    """Both windows may give their tie to the shared element, or either of them, or none; they bend opposite ways."""

    def windows(v: Tensor) -> Tensor:
        return torch.stack([1.2 * v[:2].max(), -0.5 * v[1:].max()])

    point = torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64)
    gradient = torch.tensor([0.0, claim, 0.0], dtype=torch.float64)
    assert judge_slopes(windows, point, gradient, generator=seeded(0)).passed is passed


def test_stairs_finer_than_the_first_steps_are_no_slope():
    point = torch.tensor([0.3], dtype=torch.float64)
    found = judge_slopes(lambda v: (v * 1e6).floor() / 1e6, point, torch.zeros(1).double(), generator=seeded(0))
    assert found.passed
    assert found.kink_count == 1
