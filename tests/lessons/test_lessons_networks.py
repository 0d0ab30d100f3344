"""The lessons on deep networks, overfitting, approximation, and what neurons look for."""

from collections.abc import Iterator
from dataclasses import replace
from math import pi
from pathlib import Path

import pytest
import torch

import lessons.overfitting as overfitting
import lessons.universal_approximation as approximation
import lessons.vanishing_gradients as vanishing
import lessons.what_layers_learn as neurons
from lessons.lesson import Report
from lessons.measure import outputs
from lessons.runs import batch, learner
from manual_backprop import optimizers
from manual_backprop.initializers import INITIALIZERS
from manual_backprop.layers.activations import ACTIVATIONS, Activation
from manual_backprop.losses import Quadratic
from manual_backprop.models.mlp import MLP
from manual_backprop.tape import Tape
from tests.support.running import values
from training.data import Dataset, points_rule
from training.families.configure import configure
from training.prediction import load_trained

Taught = tuple[Report, Path]


def taught(lesson, sample: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Taught:
    run_dir = tmp_path_factory.mktemp(lesson.__name__.rpartition(".")[2])
    return lesson.run(sample, 0, run_dir), run_dir


@pytest.fixture(scope="module")
def deep(sample, tmp_path_factory) -> Taught:
    return taught(vanishing, sample, tmp_path_factory)


@pytest.fixture(scope="module")
def overfit(sample, tmp_path_factory) -> Taught:
    return taught(overfitting, sample, tmp_path_factory)


@pytest.fixture(scope="module")
def approximated(sample, tmp_path_factory) -> Taught:
    return taught(approximation, sample, tmp_path_factory)


@pytest.fixture(scope="module")
def looked_into(sample, tmp_path_factory) -> Taught:
    return taught(neurons, sample, tmp_path_factory)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deep", "overfit", "approximated", "looked_into"])
def test_the_claim_holds_and_its_table_is_small(name, request):
    report, _ = request.getfixturevalue(name)
    assert report.holds
    heading, *rows = report.table
    assert len(heading) <= 5
    assert 2 <= len(rows) <= 12
    assert {len(row) for row in rows} == {len(heading)}


# Vanishing gradients


@pytest.mark.parametrize(("activation", "init"), vanishing.STARTS)
def test_delta_on_its_way_back_is_autograds(sample, activation, init):
    """The RMS of each δˡ, from a network written with autograd; and each step is what its neighbors foretell."""
    passage = vanishing.passage(sample, activation, init, seed=3)
    config = configure(
        hidden=(100,) * 30, activation=(activation,), loss="softmax-cross-entropy", dtype="float64", init=init, seed=3
    )
    params = learner(config, sample).params
    a, y = batch(sample.train, vanishing.EXAMPLES)
    zs = []
    for l in range(1, 32):
        z = torch.nn.functional.linear(a, params[f"layer{l}.weight"], params[f"layer{l}.bias"]).requires_grad_()
        zs.append(z)
        a = getattr(torch, activation)(z) if l < 31 else z
    deltas = torch.autograd.grad(torch.nn.functional.cross_entropy(a, y), zs[:-1])
    expected = torch.stack([delta.square().mean().sqrt() for delta in deltas])
    torch.testing.assert_close(passage.sizes, expected, rtol=1e-9, atol=0)
    measured = passage.sizes[:-1] / passage.sizes[1:]
    assert (measured / passage.foretold - 1).abs().max() < 0.35  # one layer; a hundred terms each


def test_the_factors_are_those_of_the_papers(sample):
    """¼ at most for sigmoids with w ~ N(0, 1/n); √(n var(w)/2) for relu: 1, √½ and √50."""
    expected = {"he": 1.0, "xavier": 0.5**0.5, "standard-normal": 50**0.5}
    for init, factor in expected.items():
        passage = vanishing.passage(sample, "relu", init, seed=1)
        assert passage.predicted == pytest.approx(factor, rel=0.03)
        assert passage.factor == pytest.approx(factor, rel=0.05)
    assert 0.15 < vanishing.passage(sample, "sigmoid", "scaled-normal", seed=1).factor < 0.25


def test_the_measured_factor_is_the_slope_of_a_geometric_row():
    sizes = 5.0 * 0.3 ** torch.arange(30, 0, -1, dtype=torch.float64)  # δ¹ is the smallest
    passage = vanishing.Passage(sizes, torch.tensor([0.2, 0.8]))
    assert passage.factor == pytest.approx(0.3, rel=1e-12)
    assert passage.predicted == pytest.approx(0.4, rel=1e-6)


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu"])
def test_the_slope_is_the_derivative_also_of_large_z(activation):
    z = torch.tensor([-3e20, -2.0, -0.1, 0.3, 4.0, 5e20], dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(getattr(torch, activation)(z).sum(), z)
    torch.testing.assert_close(vanishing.slope(activation, z.detach()), expected, rtol=1e-6, atol=1e-9)


ACCURACIES = {
    "sigmoid-1-layer": [(0, 0.1), (400, 0.8)],
    "sigmoid-6-layers": [(0, 0.1), (400, 0.1)],
    "tanh-xavier-6-layers": [(0, 0.1), (400, 0.8)],
    "relu-he-6-layers": [(0, 0.1), (400, 0.8)],
}


def untrained(monkeypatch: pytest.MonkeyPatch, **accuracies: float) -> None:
    """Let the lesson believe that its networks were trained."""
    made = {name: [(0, 0.1), (400, accuracies.get(name, curve[-1][1]))] for name, curve in ACCURACIES.items()}
    monkeypatch.setattr(vanishing, "learn", lambda data, seed, run_dir: made)


def test_delta_does_not_do_as_claimed_with_other_starts_or_derivatives(sample, tmp_path, monkeypatch):
    def holds() -> bool:
        return vanishing.run(sample, 0, tmp_path).holds

    untrained(monkeypatch)
    assert holds()
    with monkeypatch.context() as patch:  # relu's start keeps nothing any more
        patch.setitem(INITIALIZERS, "he", INITIALIZERS["xavier"])
        assert not holds()
    with monkeypatch.context() as patch:  # BP2 without σ′
        sigmoid = ACTIVATIONS["sigmoid"]
        patch.setitem(ACTIVATIONS, "sigmoid", Activation(sigmoid.value, lambda z, a: torch.ones_like(a)))
        assert not holds()


@pytest.mark.parametrize("changed", [{"sigmoid-6-layers": 0.6}, {"relu-he-6-layers": 0.3}, {"sigmoid-1-layer": 0.15}])
def test_it_does_not_hold_if_training_says_otherwise(sample, tmp_path, monkeypatch, changed):
    untrained(monkeypatch, **changed)
    assert not vanishing.run(sample, 0, tmp_path).holds


@pytest.mark.slow
def test_the_first_layer_of_deep_sigmoids_hardly_moves(deep):
    """What the runs logged themselves: the first layer's gradient, six layers deep and one."""
    _, run_dir = deep
    shallow, deeper, relu = (
        next(iter(values(run_dir / name, "gradient_norm/layer1.weight").values()))
        for name in ("sigmoid-1-layer", "sigmoid-6-layers", "relu-he-6-layers")
    )
    assert deeper < 1e-3 * shallow
    assert relu > 0.3 * shallow
    assert list(values(run_dir / "sigmoid-6-layers", "accuracy/test").values())[-1] < 0.2


# Overfitting


def test_what_each_remedy_trains_on(sample):
    sets = {remedy: overfitting.examples(sample, remedy) for remedy in overfitting.REMEDIES}
    first = sample.train.x[:1000]
    assert {name: len(data.train) for name, data in sets.items() if len(data.train) != 1000} == {
        overfitting.SHIFTED: 5_000,
        overfitting.MORE: 10_000,
    }
    for name, data in sets.items():
        assert torch.equal(data.train.x[:1000], first)
        if name == overfitting.EARLY:
            assert torch.equal(data.test.x, sample.train.x[1000:2000])
            assert torch.equal(data.test.y, sample.train.y[1000:2000])
        else:
            assert torch.equal(data.test.x, sample.test.x)


def test_at_the_end_is_the_mean_of_the_last_quarter():
    steps = overfitting.STEPS
    assert overfitting.at_the_end([(0, 9.0), (steps // 2, 8.0), (steps - 100, 1.0), (steps, 3.0)]) == 2.0


@pytest.mark.slow
def test_without_a_remedy_the_test_cost_turns(overfit):
    _, run_dir = overfit
    cost, accuracy = (values(run_dir / "nothing", tag) for tag in ("loss/test", "accuracy/train"))
    last = max(cost)
    assert last == overfitting.STEPS
    assert accuracy[last] == 1.0
    lowest = min(cost, key=cost.__getitem__)
    assert lowest < last / 2
    assert cost[last] > 1.08 * cost[lowest]
    train_cost = values(run_dir / "nothing", "loss/train")
    assert train_cost[last] < 0.02 < train_cost[lowest]
    for remedy in ("l2", "l1", "dropout", "shifted-copies", "10,000-pictures"):
        assert values(run_dir / remedy, "loss/test")[last] < cost[last]


@pytest.mark.slow
def test_stopping_early_keeps_a_moment_of_the_run_without_remedy(overfit, sample, tmp_path):
    """Same start, same pictures, same order: its best θ is one that the run without a remedy went through."""
    _, run_dir = overfit
    early = overfitting.study(sample, overfitting.EARLY, 0, tmp_path / "early")
    held_out = values(tmp_path / "early", "accuracy/test")
    best = max((step for step in held_out if step), key=held_out.__getitem__)
    assert max(held_out) < overfitting.STEPS
    assert early.cost == pytest.approx(values(run_dir / "nothing", "loss/test")[best], rel=1e-6)
    assert early.accuracy == values(run_dir / "nothing", "accuracy/test")[best]


@pytest.mark.slow
def test_l2_that_is_forgotten_helps_nothing(overfit, sample, tmp_path, monkeypatch):
    _, run_dir = overfit
    monkeypatch.setattr(optimizers, "coupled", lambda gradient, theta, decay: gradient)
    assert list(overfitting.study(sample, "l2", 0, tmp_path / "l2").test) == list(
        values(run_dir / "nothing", "loss/test").items()
    )


BARE = overfitting.Outcome([(1000, 0.01)], [(0, 2.3), (300, 0.5), (1000, 0.6)], 0.6, 0.84, 1.0)
BETTER = replace(BARE, cost=0.4)


@pytest.mark.parametrize(
    ("outcomes", "holds"),
    [
        ({}, True),
        ({"nothing": replace(BARE, cost=0.51)}, False),
        ({"nothing": replace(BARE, train_accuracy=0.95)}, False),
        ({"l1": replace(BARE, cost=0.59)}, False),
        ({"dropout": replace(BARE, cost=0.7)}, False),
    ],
    ids=["as told", "the cost does not rise", "not by heart", "L1 hardly helps", "dropout harms"],
)
def test_the_verdict_follows_from_the_outcomes(sample, tmp_path, monkeypatch, outcomes, holds):
    made = dict.fromkeys(overfitting.REMEDIES, BETTER) | {"nothing": BARE} | outcomes
    monkeypatch.setattr(overfitting, "study", lambda data, remedy, seed, run_dir: made[remedy])
    assert overfitting.run(sample, 0, tmp_path).holds == holds


# Universal approximation


def test_a_fit_is_that_of_autograd_and_torchs_adam(monkeypatch):
    monkeypatch.setattr(approximation, "STEPS", 50)
    _, params, costs = approximation.fit(5, seed=2)
    w = torch.full((5, 1), 40.0, dtype=torch.float64)
    b = -40.0 * torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=torch.float64)
    v = 0.3 * torch.randn(1, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64) / 5**0.5
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
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("count", [1, 3, 10, 128])
def test_bumps_of_a_straight_line_are_off_by_half_their_width(monkeypatch, count):
    """Of f(x) = x the staircase is known: it is exact in the middles, and off by 1/2N at the edges."""
    monkeypatch.setattr(approximation, "f", lambda x: x)
    model, params = approximation.bumps(count)
    middles = ((torch.arange(count, dtype=torch.float64) + 0.5) / count).unsqueeze(1)
    torch.testing.assert_close(outputs(model, params, middles), middles, rtol=1e-12, atol=0)
    assert approximation.largest_error(model, params) == pytest.approx(1 / (2 * count), rel=0.02)
    assert approximation.bound(count) == pytest.approx(1 / (2 * count), rel=1e-3)


@pytest.mark.parametrize("count", [2, 5, 17, 64, 100])
def test_bumps_keep_within_their_bound(count):
    x = torch.linspace(0, 1, 50_001, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(approximation.f(x).sum(), x)
    assert approximation.bound(count) == pytest.approx(slope.abs().max().item() / (2 * count), rel=1e-3)
    assert approximation.largest_error(*approximation.bumps(count)) <= approximation.bound(count)


def test_no_straight_line_does_better_than_one_neuron_is_said_to():
    """All lines through the square, 3 degrees and 0.1 apart: the best gets a quarter wrong."""
    xy = approximation.square(40)
    truth = points_rule(xy).unsqueeze(1)
    angles = torch.arange(0, 180, 3, dtype=torch.float64) * pi / 180
    along = xy @ torch.stack([angles.cos(), angles.sin()])
    offsets = torch.arange(-10, 15, 0.1)
    wrong = torch.stack([((along > offset) ^ truth).double().mean(dim=0) for offset in offsets])
    best = torch.minimum(wrong, 1 - wrong).min().item()
    assert best == pytest.approx(0.25, abs=0.01)
    assert best > approximation.STRAIGHT


@pytest.mark.slow
def test_wider_networks_know_the_points_better(approximated, sample):
    """Judged by the points' own test set, which the networks did not see: the area is the rule's."""
    _, run_dir = approximated
    test = {width: list(values(run_dir / f"points-{width}", "accuracy/test").values())[-1] for width in (1, 2, 4, 16)}
    assert test[1] < 0.8
    assert test[16] > 0.97
    truth = points_rule(approximation.square())
    network = load_trained(run_dir / "points-16")
    area = network.outputs(((approximation.square() - 5) / 5).float()).argmax(1) == 1
    assert (area == truth).double().mean().item() == pytest.approx(test[16], abs=0.01)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Points learned in no time, a third of the steps, less to fall."""
    truth = points_rule(approximation.square())
    monkeypatch.setattr(approximation, "says_blue", lambda width, seed, run_dir: truth if width > 1 else ~truth)
    monkeypatch.setattr(approximation, "STEPS", 500)
    monkeypatch.setattr(approximation, "FELL", 5)
    return monkeypatch


@pytest.mark.slow
def test_nothing_is_approximated_uphill_or_by_bumps_in_the_wrong_places(sample, tmp_path, quick):
    def holds() -> bool:
        return approximation.run(sample, 0, tmp_path).holds

    assert holds()
    with quick.context() as patch:  # every bump one place too far to the right
        right = approximation.bumps

        def shifted(count: int):
            model, params = right(count)
            params["layer1.bias"] = params["layer1.bias"] - params["layer1.weight"][:, 0] / count
            return model, params

        patch.setattr(approximation, "bumps", shifted)
        assert not holds()
    with quick.context() as patch:  # straight lines that get nearly all right
        patch.setattr(approximation, "says_blue", lambda width, seed, run_dir: points_rule(approximation.square()))
        assert not holds()
    with quick.context() as patch:  # the gradient's sign is wrong
        backward = Quadratic.backward
        patch.setattr(Quadratic, "backward", lambda loss, dC, cache: -backward(loss, dC, cache))
        assert not holds()


# What layers learn

NETWORK = MLP((784, 16, 16, 10), ("sigmoid",) * 3)


def random_network() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64) / shape[-1] ** 0.5
        for name, shape in NETWORK.shapes.items()
    }


def noise(count: int) -> torch.Tensor:
    return torch.rand(count, 784, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_the_gradient_of_the_pixels_is_autograds_and_that_of_moving_them(layer):
    part, params = neurons.up_to(NETWORK, layer), random_network()
    x = noise(3).requires_grad_()
    wish = torch.randn(3, part.sizes[-1], generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    a = x
    for l in range(1, layer + 1):
        a = torch.sigmoid(a @ params[f"layer{l}.weight"].T + params[f"layer{l}.bias"])
    (expected,) = torch.autograd.grad((wish * a).sum(), x)
    by_hand = neurons.input_gradient(part, params, x.detach(), wish)
    torch.testing.assert_close(by_hand, expected, rtol=1e-10, atol=1e-14)
    moved = neurons.wiggled_gradient(part, params, x.detach()[1:2], wish[1:2])
    torch.testing.assert_close(moved, expected[1:2], rtol=1e-5, atol=1e-9)


def test_ascent_finds_the_known_best_picture_of_a_first_layer_neuron():
    """White where the weight is positive, black elsewhere."""
    part, params = neurons.up_to(NETWORK, 1), random_network()
    reached, pictures = neurons.ascend(part, params, noise(2))
    W, b = params["layer1.weight"], params["layer1.bias"]
    torch.testing.assert_close(reached, torch.sigmoid(W.clamp(min=0).sum(dim=1) + b), rtol=1e-3, atol=0)
    assert pictures.min() >= 0
    assert pictures.max() <= 1
    large = W.abs() > 0.2 * W.abs().max()
    assert ((pictures > 0.5) == (W > 0))[large].double().mean() > 0.99


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_what_a_layer_reaches_on_noise_and_on_digits(sample, monkeypatch, layer):
    """An output neuron counts the digits of its own class only."""
    monkeypatch.setattr(neurons, "STEPS", 1)
    params, (x, y), random = random_network(), batch(sample.train, 200), noise(20)
    found = neurons.examine(NETWORK, params, layer, x, y, random)
    tapes = Tape(observes=True), Tape(observes=True)
    for v, tape in zip((x, random), tapes, strict=True):
        NETWORK.forward(params, v, tape)
    on_digits, on_noise = (tape.outputs[f"layer{layer}.a"] for tape in tapes)
    for k in range(len(found.real)):
        own = y == k if layer == 3 else slice(None)
        assert found.real[k] == pytest.approx(on_digits[own, k].max().item(), rel=1e-12)
        assert found.noise[k] == pytest.approx(on_noise[:, k].max().item(), rel=1e-12)


def test_locality_of_known_weights():
    one_place, everywhere = torch.zeros(2, 28, 28, dtype=torch.float64)
    one_place[20:27, 3:10] = torch.randn(7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    everywhere[:] = 0.3
    found = neurons.locality(torch.stack([one_place, everywhere]).flatten(1), (28, 28))
    torch.testing.assert_close(found, torch.tensor([1.0, 49 / 784], dtype=torch.float64))


def test_likeness_of_known_pictures():
    x = noise(3)
    others = torch.stack([0.5 * x[0] + 0.2, 1 - x[1], noise(4)[3]])
    found = neurons.likeness(x, others)
    torch.testing.assert_close(found[:2], torch.tensor([1.0, -1.0], dtype=torch.float64))
    assert found[2].abs() < 0.15


@pytest.mark.slow
def test_the_trained_network_takes_made_pictures_for_digits(looked_into, sample):
    _, run_dir = looked_into
    trained = load_trained(run_dir / "network")
    params = {name: p.double() for name, p in trained.learner.params.items()}
    assert list(values(run_dir / "network", "accuracy/test").values())[-1] > 0.85
    x, y = batch(sample.train, 10_000)
    starts = torch.rand(16, 784, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    reached, pictures = neurons.ascend(NETWORK, params, starts)
    outputs = trained.outputs(pictures.float())
    assert outputs.argmax(1).tolist() == list(range(10))
    torch.testing.assert_close(outputs.diagonal().double(), reached, rtol=1e-4, atol=0)
    real = trained.outputs(x.float())
    for k in range(10):
        assert reached[k] > 0.99 * real[y == k, k].max()
        mean = x[y == k].mean(0)
        alike = [torch.corrcoef(torch.stack([picture, mean]))[0, 1].item() for picture in x[y == k][:200]]
        assert torch.corrcoef(torch.stack([pictures[k], mean]))[0, 1] < sorted(alike)[20]


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["uphill is downhill", "a forgotten σ′"])
def test_wrong_gradients_of_the_pixels_are_noticed(sample, tmp_path, monkeypatch, broken):
    monkeypatch.setattr(neurons, "NETWORK", replace(neurons.NETWORK, epochs=1))
    monkeypatch.setattr(neurons, "STEPS", 20)
    if broken == "a forgotten σ′":

        def gradient(model, params, x, d_output):
            W = [params[f"layer{l}.weight"] for l in range(len(model.activations), 0, -1)]
            return torch.linalg.multi_dot([d_output, *W]) if len(W) > 1 else d_output @ W[0]

        monkeypatch.setattr(neurons, "input_gradient", gradient)
    else:
        right = neurons.input_gradient
        monkeypatch.setattr(neurons, "input_gradient", lambda *arguments: -right(*arguments))
    assert not neurons.run(sample, 0, tmp_path).holds
