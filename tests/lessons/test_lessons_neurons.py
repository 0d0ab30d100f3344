"""The lessons on what one hidden layer can do, and on what neurons look for."""

from dataclasses import replace
from math import pi

import pytest
import torch
from torch.testing import assert_close

import lessons.universal_approximation as approximation
import lessons.what_layers_learn as neurons
from lessons.measure import outputs
from lessons.runs import batch
from manual_backprop.losses import Quadratic
from manual_backprop.models.mlp import MLP
from manual_backprop.tape import Tape
from tests.support.running import values
from training.data import points_rule
from training.prediction import load_trained

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
        assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("count", [1, 3, 10, 128])
def test_bumps_of_a_straight_line_are_off_by_half_their_width(monkeypatch, count):
    """Of f(x) = x the staircase is known: it is exact in the middles, and off by 1/2N at the edges."""
    monkeypatch.setattr(approximation, "f", lambda x: x)
    model, params = approximation.bumps(count)
    middles = ((torch.arange(count, dtype=torch.float64) + 0.5) / count).unsqueeze(1)
    assert_close(outputs(model, params, middles), middles, rtol=1e-12, atol=0)
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


@pytest.mark.long
@pytest.mark.parametrize("wrong", [None, "bumps one place too far", "right straight lines", "uphill"])
def test_universal_approximation_can_fail(sample, tmp_path, monkeypatch, wrong):
    """With points learned in no time, a third of the steps, less to fall."""
    truth, bumps, backward = points_rule(approximation.square()), approximation.bumps, Quadratic.backward

    def shifted(count: int):
        model, params = bumps(count)
        params["layer1.bias"] = params["layer1.bias"] - params["layer1.weight"][:, 0] / count
        return model, params

    narrow = truth if wrong == "right straight lines" else ~truth
    monkeypatch.setattr(approximation, "says_blue", lambda width, seed, run_dir: truth if width > 1 else narrow)
    monkeypatch.setattr(approximation, "STEPS", 500)
    monkeypatch.setattr(approximation, "FELL", 5)
    if wrong == "bumps one place too far":
        monkeypatch.setattr(approximation, "bumps", shifted)
    if wrong == "uphill":
        monkeypatch.setattr(Quadratic, "backward", lambda loss, dC, cache: -backward(loss, dC, cache))
    assert approximation.run(sample, 0, tmp_path).holds is (wrong is None)


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
    a = x = noise(3).requires_grad_()
    wish = torch.randn(3, part.sizes[-1], generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    for l in range(1, layer + 1):
        a = torch.sigmoid(a @ params[f"layer{l}.weight"].T + params[f"layer{l}.bias"])
    (expected,) = torch.autograd.grad((wish * a).sum(), x)
    assert_close(neurons.input_gradient(part, params, x.detach(), wish), expected, rtol=1e-10, atol=1e-14)
    moved = neurons.wiggled_gradient(part, params, x.detach()[1:2], wish[1:2])
    assert_close(moved, expected[1:2], rtol=1e-5, atol=1e-9)


def test_ascent_finds_the_known_best_picture_of_a_first_layer_neuron():
    """White where the weight is positive, black elsewhere."""
    part, params = neurons.up_to(NETWORK, 1), random_network()
    reached, pictures = neurons.ascend(part, params, noise(2))
    W, b = params["layer1.weight"], params["layer1.bias"]
    assert_close(reached, torch.sigmoid(W.clamp(min=0).sum(dim=1) + b), rtol=1e-3, atol=0)
    assert 0 <= pictures.min() <= pictures.max() <= 1
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


def test_locality_and_likeness_of_known_pictures():
    one_place, everywhere = torch.zeros(2, 28, 28, dtype=torch.float64)
    one_place[20:27, 3:10] = torch.randn(7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    everywhere[:] = 0.3
    found = neurons.locality(torch.stack([one_place, everywhere]).flatten(1), (28, 28))
    assert_close(found, torch.tensor([1.0, 49 / 784], dtype=torch.float64))
    x = noise(3)
    found = neurons.likeness(x, torch.stack([0.5 * x[0] + 0.2, 1 - x[1], noise(4)[3]]))
    assert_close(found[:2], torch.tensor([1.0, -1.0], dtype=torch.float64))
    assert found[2].abs() < 0.15


@pytest.mark.long
def test_the_trained_network_takes_made_pictures_for_digits(taught, sample):
    _, run_dir = taught("what-layers-learn")
    trained = load_trained(run_dir / "network")
    params = {name: p.double() for name, p in trained.learner.params.items()}
    assert list(values(run_dir / "network", "accuracy/test").values())[-1] > 0.85
    x, y = batch(sample.train, 10_000)
    starts = torch.rand(16, 784, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    reached, pictures = neurons.ascend(NETWORK, params, starts)
    outputs = trained.outputs(pictures.float())
    assert outputs.argmax(1).tolist() == list(range(10))
    assert_close(outputs.diagonal().double(), reached, rtol=1e-4, atol=0)
    real = trained.outputs(x.float())
    for k in range(10):
        assert reached[k] > 0.99 * real[y == k, k].max()
        mean = x[y == k].mean(0)
        alike = [torch.corrcoef(torch.stack([picture, mean]))[0, 1].item() for picture in x[y == k][:200]]
        assert torch.corrcoef(torch.stack([pictures[k], mean]))[0, 1] < sorted(alike)[20]


@pytest.mark.long
@pytest.mark.parametrize("broken", ["uphill is downhill", "a forgotten σ′"])
def test_wrong_gradients_of_the_pixels_are_noticed(sample, tmp_path, monkeypatch, broken):
    monkeypatch.setattr(neurons, "NETWORK", replace(neurons.NETWORK, epochs=1))
    monkeypatch.setattr(neurons, "STEPS", 20)
    right = neurons.input_gradient

    def gradient(model, params, x, d_output):
        if broken == "uphill is downhill":
            return -right(model, params, x, d_output)
        for l in range(len(model.activations), 0, -1):
            d_output = d_output @ params[f"layer{l}.weight"]
        return d_output

    monkeypatch.setattr(neurons, "input_gradient", gradient)
    assert not neurons.run(sample, 0, tmp_path).holds
