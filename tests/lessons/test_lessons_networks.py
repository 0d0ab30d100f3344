"""The lessons on deep networks and on overfitting."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

import lessons.overfitting as overfitting
import lessons.vanishing_gradients as vanishing
from lessons.runs import batch, learner
from manual_backprop import optimizers
from manual_backprop.initializers import INITIALIZERS
from tests.support.lesson_networks import with_slope
from tests.support.running import values
from training.families.configure import configure

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
        zs.append(torch.nn.functional.linear(a, params[f"layer{l}.weight"], params[f"layer{l}.bias"]).requires_grad_())
        a = getattr(torch, activation)(zs[-1]) if l < 31 else zs[-1]
    deltas = torch.autograd.grad(torch.nn.functional.cross_entropy(a, y), zs[:-1])
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


@pytest.mark.sweep(3)
@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"sigmoid-6-layers": 0.6},
        pytest.param({"relu-he-6-layers": 0.3}, marks=pytest.mark.slow),
        pytest.param({"sigmoid-1-layer": 0.15}, marks=pytest.mark.slow),
        "he is xavier",
        "BP2 without σ′",
    ],
    ids=str,
)
def test_vanishing_gradients_can_fail(sample, tmp_path, monkeypatch, changed):
    """If training says otherwise, which the lesson is made to believe, or δ does not do as claimed."""
    accuracies = {"sigmoid-1-layer": 0.8, "sigmoid-6-layers": 0.1, "tanh-xavier-6-layers": 0.8, "relu-he-6-layers": 0.8}
    if changed == "he is xavier":
        monkeypatch.setitem(INITIALIZERS, "he", INITIALIZERS["xavier"])
    elif changed == "BP2 without σ′":
        with_slope(monkeypatch, 1.0)
    else:
        accuracies |= changed
    made = {name: [(0, 0.1), (400, accuracy)] for name, accuracy in accuracies.items()}
    monkeypatch.setattr(vanishing, "learn", lambda data, seed, run_dir: made)
    assert vanishing.run(sample, 0, tmp_path).holds is (not changed)


@pytest.mark.long
def test_the_first_layer_of_deep_sigmoids_hardly_moves(taught):
    """What the runs logged themselves: the first layer's gradient, six layers deep and one."""
    _, run_dir = taught("vanishing-gradients")
    shallow, deeper, relu = (
        next(iter(values(run_dir / name, "gradient_norm/layer1.weight").values()))
        for name in ("sigmoid-1-layer", "sigmoid-6-layers", "relu-he-6-layers")
    )
    assert deeper < 1e-3 * shallow
    assert relu > 0.3 * shallow
    assert list(values(run_dir / "sigmoid-6-layers", "accuracy/test").values())[-1] < 0.2


# Overfitting


def test_what_each_remedy_trains_on(sample):
    more = {overfitting.SHIFTED: 5_000, overfitting.MORE: 10_000}
    for name in overfitting.REMEDIES:
        data = overfitting.examples(sample, name)
        assert len(data.train) == more.get(name, 1000), name
        assert torch.equal(data.train.x[:1000], sample.train.x[:1000]), name
        if name == overfitting.EARLY:
            assert torch.equal(data.test.x, sample.train.x[1000:2000])
            assert torch.equal(data.test.y, sample.train.y[1000:2000])
        else:
            assert torch.equal(data.test.x, sample.test.x), name


def test_at_the_end_is_the_mean_of_the_last_quarter():
    steps = overfitting.STEPS
    assert overfitting.at_the_end([(0, 9.0), (steps // 2, 8.0), (steps - 100, 1.0), (steps, 3.0)]) == 2.0


@pytest.mark.long
def test_without_a_remedy_the_test_cost_turns(taught):
    _, run_dir = taught("overfitting")
    cost, train_cost, accuracy = (
        values(run_dir / "nothing", f"{tag}") for tag in ("loss/test", "loss/train", "accuracy/train")
    )
    last, lowest = max(cost), min(cost, key=cost.__getitem__)
    assert (last, accuracy[last]) == (overfitting.STEPS, 1.0)
    assert lowest < last / 2
    assert cost[last] > 1.08 * cost[lowest]
    assert train_cost[last] < 0.02 < train_cost[lowest]
    for remedy in ("l2", "l1", "dropout", "shifted-copies", "10,000-pictures"):
        assert values(run_dir / remedy, "loss/test")[last] < cost[last], remedy


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


@pytest.mark.parametrize(
    "outcomes",
    [
        pytest.param({}, id="as told"),
        pytest.param({"nothing": replace(BARE, cost=0.51)}, id="the cost does not rise"),
        pytest.param({"nothing": replace(BARE, train_accuracy=0.95)}, id="not by heart"),
        pytest.param({"l1": replace(BARE, cost=0.59)}, id="L1 hardly helps"),
        pytest.param({"dropout": replace(BARE, cost=0.7)}, id="dropout harms"),
    ],
)
def test_overfitting_can_fail(sample, tmp_path, monkeypatch, outcomes):
    made = dict.fromkeys(overfitting.REMEDIES, replace(BARE, cost=0.4)) | {"nothing": BARE} | outcomes
    monkeypatch.setattr(overfitting, "study", lambda data, remedy, seed, run_dir: made[remedy])
    assert overfitting.run(sample, 0, tmp_path).holds is (not outcomes)
