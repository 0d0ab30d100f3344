"""The lessons on whole networks: deep ones, overfitted ones, what one hidden layer can do, what neurons look for."""

from dataclasses import replace
from math import pi

import pytest
import torch
from torch.nn.functional import cross_entropy, linear
from torch.testing import assert_close

import lessons.overfitting as overfitting
import lessons.universal_approximation as approximation
import lessons.vanishing_gradients as vanishing
import lessons.what_layers_learn as neurons
from lessons.measure import outputs
from lessons.runs import batch, learner
from manual_backprop import optimizers
from manual_backprop.models.mlp import MLP
from manual_backprop.tape import Tape
from tests.support.running import values
from training.data import points_rule
from training.families.configure import configure
from training.prediction import load_trained


def draw(kind, seed, *shape):
    return kind(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Vanishing gradients


@pytest.mark.parametrize(("activation", "init"), vanishing.STARTS)
def test_delta_on_its_way_back_is_autograds(sample, activation, init):
    """The RMS of each δˡ, from a network written with autograd; and each step is what its neighbors foretell."""
    passage = vanishing.passage(sample, activation, init, seed=3)
    options = {"loss": "softmax-cross-entropy", "dtype": "float64", "init": init, "seed": 3}
    params = learner(configure(hidden=(100,) * 30, activation=(activation,), **options), sample).params
    a, y = batch(sample.train, vanishing.EXAMPLES)
    zs = []
    for l in range(1, 32):
        zs.append(linear(a, params[f"layer{l}.weight"], params[f"layer{l}.bias"]).requires_grad_())
        a = getattr(torch, activation)(zs[-1]) if l < 31 else zs[-1]
    deltas = torch.autograd.grad(cross_entropy(a, y), zs[:-1])
    assert_close(passage.sizes, torch.stack([delta.square().mean().sqrt() for delta in deltas]), rtol=1e-9, atol=0)
    measured = passage.sizes[:-1] / passage.sizes[1:]
    assert (measured / passage.foretold - 1).abs().max() < 0.35  # one layer; a hundred terms each


def test_the_measured_factor_is_the_slope_of_a_geometric_row():
    sizes = 5.0 * 0.3 ** torch.arange(30, 0, -1, dtype=torch.float64)  # δ¹ is the smallest
    passage = vanishing.Passage(sizes, torch.tensor([0.2, 0.8]))
    assert passage.factor == pytest.approx(0.3, rel=1e-12)
    assert passage.predicted == pytest.approx(0.4, rel=1e-6)


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu"])
def test_the_slope_is_the_derivative_also_of_large_z(activation):
    z = torch.tensor([-3e20, -2.0, -0.1, 0.3, 4.0, 5e20], dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(getattr(torch, activation)(z).sum(), z)
    assert_close(vanishing.slope(activation, z.detach()), expected, rtol=1e-6, atol=1e-9)


# Overfitting


def test_what_each_remedy_trains_on_and_how_the_end_is_judged(sample):
    more = {overfitting.SHIFTED: 5_000, overfitting.MORE: 10_000}
    for name in overfitting.REMEDIES:
        data = overfitting.examples(sample, name)
        test = sample.train.part(1000, 2000) if name == overfitting.EARLY else sample.test
        assert len(data.train) == more.get(name, 1000), name
        assert torch.equal(data.train.x[:1000], sample.train.x[:1000]), name
        assert torch.equal(data.test.x, test.x), name
        assert torch.equal(data.test.y, test.y), name
    steps = overfitting.STEPS
    assert overfitting.at_the_end([(0, 9.0), (steps // 2, 8.0), (steps - 100, 1.0), (steps, 3.0)]) == 2.0


@pytest.mark.long
def test_stopping_early_and_a_forgotten_l2_go_through_the_run_without_remedy(taught, sample, tmp_path, monkeypatch):
    """Same start, same pictures, same order: its best θ is one that the run without a remedy went through."""
    _, run_dir = taught("overfitting")
    cost = values(run_dir / "nothing", "loss/test")
    early = overfitting.study(sample, overfitting.EARLY, 0, tmp_path / "early")
    held_out = values(tmp_path / "early", "accuracy/test")
    best = max((step for step in held_out if step), key=held_out.__getitem__)
    assert max(held_out) < overfitting.STEPS
    assert early.cost == pytest.approx(cost[best], rel=1e-6)
    assert early.accuracy == values(run_dir / "nothing", "accuracy/test")[best]
    monkeypatch.setattr(optimizers, "coupled", lambda gradient, theta, decay, scratch: gradient)
    assert list(overfitting.study(sample, "l2", 0, tmp_path / "l2").test) == list(cost.items())


BARE = overfitting.Outcome([(1000, 0.01)], [(0, 2.3), (300, 0.5), (1000, 0.6)], 0.6, 0.84, 1.0)
OUTCOMES = {
    "as told": {},
    "the cost does not rise": {"nothing": replace(BARE, cost=0.51)},
    "not by heart": {"nothing": replace(BARE, train_accuracy=0.95)},
    "L1 hardly helps": {"l1": replace(BARE, cost=0.59)},
    "dropout harms": {"dropout": replace(BARE, cost=0.7)},
}


@pytest.mark.parametrize("outcomes", OUTCOMES.values(), ids=OUTCOMES)
def test_overfitting_can_fail(sample, tmp_path, monkeypatch, outcomes):
    made = dict.fromkeys(overfitting.REMEDIES, replace(BARE, cost=0.4)) | {"nothing": BARE} | outcomes
    monkeypatch.setattr(overfitting, "study", lambda data, remedy, seed, run_dir: made[remedy])
    assert overfitting.run(sample, 0, tmp_path).holds is (not outcomes)


# Universal approximation


def test_a_fit_is_that_of_autograd_and_torchs_adam(monkeypatch):
    monkeypatch.setattr(approximation, "STEPS", 50)
    _, params, costs = approximation.fit(5, seed=2)
    w = torch.full((5, 1), 40.0, dtype=torch.float64)
    b = -40.0 * torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=torch.float64)
    v = 0.3 * draw(torch.randn, 2, 1, 5) / 5**0.5
    own = [p.requires_grad_() for p in (w, b, v, torch.zeros(1, dtype=torch.float64))]
    optimizer = torch.optim.Adam(own, lr=0.02)
    x = torch.linspace(0, 1, 201, dtype=torch.float64).unsqueeze(1)
    y = 0.2 + 0.4 * x**2 + 0.3 * x * torch.sin(15 * x) + 0.05 * torch.cos(50 * x)
    for step in range(1, 51):
        optimizer.param_groups[0]["lr"] = 0.01 * (1 + torch.cos(torch.tensor(pi * step / 50)).item())
        optimizer.zero_grad()
        C = 0.5 * (torch.tanh(x @ own[0].T + own[1]) @ own[2].T + own[3] - y).square().mean()
        C.backward()
        optimizer.step()
    assert costs == [(50, pytest.approx(C.item(), rel=1e-5))]
    for ours, theirs in zip(params.values(), own, strict=True):
        assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("count", [1, 2, 5, 10, 17, 64, 128])
def test_bumps_keep_within_their_bound_and_of_a_straight_line_are_off_by_half_their_width(monkeypatch, count):
    """Of f(x) = x the staircase is known: it is exact in the middles, and off by 1/2N at the edges."""
    x = torch.linspace(0, 1, 50_001, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(approximation.f(x).sum(), x)
    assert approximation.bound(count) == pytest.approx(slope.abs().max().item() / (2 * count), rel=1e-3)
    assert approximation.largest_error(*approximation.bumps(count)) <= approximation.bound(count)
    monkeypatch.setattr(approximation, "f", lambda x: x)
    model, params = approximation.bumps(count)
    middles = ((torch.arange(count, dtype=torch.float64) + 0.5) / count).unsqueeze(1)
    assert_close(outputs(model, params, middles), middles, rtol=1e-12, atol=0)
    assert approximation.largest_error(model, params) == pytest.approx(1 / (2 * count), rel=0.02)
    assert approximation.bound(count) == pytest.approx(1 / (2 * count), rel=1e-3)


def test_no_straight_line_does_better_than_one_neuron_is_said_to():
    """All lines through the square, 3 degrees and 0.1 apart: the best gets a quarter wrong."""
    xy = approximation.square(40)
    truth = points_rule(xy).unsqueeze(1)
    angles = torch.arange(0, 180, 3, dtype=torch.float64) * pi / 180
    along, offsets = xy @ torch.stack([angles.cos(), angles.sin()]), torch.arange(-10, 15, 0.1)
    wrong = torch.stack([((along > offset) ^ truth).double().mean(dim=0) for offset in offsets])
    best = torch.minimum(wrong, 1 - wrong).min().item()
    assert best == pytest.approx(0.25, abs=0.01)
    assert best > approximation.STRAIGHT


@pytest.mark.long
def test_wider_networks_know_the_points_better(taught):
    """Judged by the points' own test set, which the networks did not see: the area is the rule's."""
    _, run_dir = taught("universal-approximation")
    test = {width: list(values(run_dir / f"points-{width}", "accuracy/test").values())[-1] for width in (1, 16)}
    assert test[1] < 0.8
    assert test[16] > 0.97
    xy = approximation.square()
    area = load_trained(run_dir / "points-16").outputs(((xy - 5) / 5).float()).argmax(1) == 1
    assert (area == points_rule(xy)).double().mean().item() == pytest.approx(test[16], abs=0.01)


# What layers learn

NETWORK = MLP((784, 16, 16, 10), ("sigmoid",) * 3)
PARAMS = {
    name: draw(torch.randn, seed, *shape) / shape[-1] ** 0.5
    for seed, (name, shape) in enumerate(NETWORK.shapes.items())
}


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_the_gradient_of_the_pixels_is_autograds_and_that_of_moving_them(layer):
    part, a = neurons.up_to(NETWORK, layer), draw(torch.rand, 5, 3, 784).requires_grad_()
    x, wish = a, draw(torch.randn, 6, 3, part.sizes[-1])
    for l in range(1, layer + 1):
        a = torch.sigmoid(linear(a, PARAMS[f"layer{l}.weight"], PARAMS[f"layer{l}.bias"]))
    (expected,) = torch.autograd.grad((wish * a).sum(), x)
    assert_close(neurons.input_gradient(part, PARAMS, x.detach(), wish), expected, rtol=1e-10, atol=1e-14)
    moved = neurons.wiggled_gradient(part, PARAMS, x.detach()[1:2], wish[1:2])
    assert_close(moved, expected[1:2], rtol=1e-5, atol=1e-9)


def test_ascent_finds_the_known_best_picture_of_a_first_layer_neuron():
    """White where the weight is positive, black elsewhere."""
    reached, pictures = neurons.ascend(neurons.up_to(NETWORK, 1), PARAMS, draw(torch.rand, 5, 2, 784))
    W, b = PARAMS["layer1.weight"], PARAMS["layer1.bias"]
    assert_close(reached, torch.sigmoid(W.clamp(min=0).sum(dim=1) + b), rtol=1e-3, atol=0)
    assert 0 <= pictures.min() <= pictures.max() <= 1
    large = W.abs() > 0.2 * W.abs().max()
    assert ((pictures > 0.5) == (W > 0))[large].double().mean() > 0.99


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_what_a_layer_reaches_on_noise_and_on_digits(sample, monkeypatch, layer):
    """An output neuron counts the digits of its own class only."""
    monkeypatch.setattr(neurons, "STEPS", 1)
    (x, y), random = batch(sample.train, 200), draw(torch.rand, 5, 20, 784)
    found = neurons.examine(NETWORK, PARAMS, layer, x, y, random)
    tapes = Tape(observes=True), Tape(observes=True)
    for v, tape in zip((x, random), tapes, strict=True):
        NETWORK.forward(PARAMS, v, tape)
    on_digits, on_noise = (tape.outputs[f"layer{layer}.a"] for tape in tapes)
    for k in range(len(found.real)):
        own = y == k if layer == 3 else slice(None)
        assert found.real[k] == pytest.approx(on_digits[own, k].max().item(), rel=1e-12)
        assert found.noise[k] == pytest.approx(on_noise[:, k].max().item(), rel=1e-12)


def test_locality_and_likeness_of_known_pictures():
    one_place, everywhere = torch.zeros(2, 28, 28, dtype=torch.float64)
    one_place[20:27, 3:10] = draw(torch.randn, 0, 7, 7)
    everywhere[:] = 0.3
    found = neurons.locality(torch.stack([one_place, everywhere]).flatten(1), (28, 28))
    assert_close(found, torch.tensor([1.0, 49 / 784], dtype=torch.float64))
    x = draw(torch.rand, 5, 4, 784)
    found = neurons.likeness(x[:3], torch.stack([0.5 * x[0] + 0.2, 1 - x[1], x[3]]))
    assert_close(found[:2], torch.tensor([1.0, -1.0], dtype=torch.float64))
    assert found[2].abs() < 0.15
