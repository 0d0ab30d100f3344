"""The training loop: which examples in which order, what is logged when, and the check against autograd."""

from dataclasses import replace
from math import cos, pi
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from manual_backprop.layers.activations import ACTIVATIONS
from manual_backprop.losses import LOSSES, Quadratic
from manual_backprop.tape import Tape
from tests.support import running
from tests.support.running import call, flags, learner_of, resolved, train_loop, values, write_npz
from training import checkpoint
from training.config import Config
from training.data import Dataset, Split, load
from training.data.order import epoch_order
from training.families.configure import configure
from training.learners.manual import ManualLearner
from training.loop import Loop, NotFiniteError

Capsys = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_npz(tmp_path_factory.mktemp("data") / "arrays.npz")


@pytest.fixture(scope="module")
def data(npz: Path) -> Dataset:
    """200 training examples: seven batches of 30, the last of 20."""
    return load("npz", npz)


def config(data: Dataset, **changes: object) -> Config:
    settings = {"hidden": (4, 3), "activation": ("tanh", "sigmoid", "sigmoid"), "lr": 1.0, "batch_size": 30}
    return resolved(configure(**(settings | {"epochs": 2} | changes)), data)


# The order of the examples


def test_every_epoch_is_a_permutation_of_its_own_that_depends_on_seed_and_epoch_only() -> None:
    orders = {(seed, epoch): epoch_order(seed, epoch, 1000) for seed in (0, 1, 2**63 - 1) for epoch in (0, 1, 2, 99)}
    for order in orders.values():
        assert torch.equal(order.sort().values, torch.arange(1000))
    assert len({tuple(order.tolist()) for order in orders.values()}) == len(orders)
    torch.manual_seed(1234)
    epoch_order(4, 6, 17)
    assert torch.equal(epoch_order(1, 2, 1000), orders[1, 2])


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> tuple[list[list[int]], list[float]]:
    """The batches and the rates of all steps that the hand-written learner takes, as they come."""
    batches_taken: list[list[int]] = []
    rates_taken: list[float] = []
    advance = ManualLearner.advance

    def recorded(self: ManualLearner, batches: torch.Tensor, learning_rates: torch.Tensor) -> torch.Tensor:
        batches_taken.extend(batches.tolist())
        rates_taken.extend(learning_rates.tolist())
        return advance(self, batches, learning_rates)

    monkeypatch.setattr(ManualLearner, "advance", recorded)
    return batches_taken, rates_taken


Taken = tuple[list[list[int]], list[float]]


@pytest.mark.parametrize(
    ("batch_size", "sizes"),
    [(30, [30] * 6 + [20]), (200, [200]), (500, [200]), (199, [199, 1]), (100, [100, 100])],
    ids=str,
)
def test_an_epoch_takes_every_example_once_the_smaller_last_batch_included(
    batch_size: int, sizes: list[int], data: Dataset, tmp_path: Path, taken: Taken
) -> None:
    train_loop(config(data, seed=3, batch_size=batch_size), data, tmp_path)
    batches, _ = taken
    assert [len(batch) for batch in batches] == sizes * 2
    for epoch in range(2):
        examples = [i for batch in batches[len(sizes) * epoch : len(sizes) * (epoch + 1)] for i in batch]
        assert examples == epoch_order(3, epoch, 200).tolist()


# The schedule


@pytest.mark.parametrize(
    ("options", "factors"),
    [
        ({"schedule": "cosine"}, [(1 + cos(pi * t / 14)) / 2 for t in range(14)]),
        ({"schedule": "cosine", "max_steps": 4, "epochs": 100}, [1, (2 + 2**0.5) / 4, 0.5, (2 - 2**0.5) / 4]),
        ({"schedule": "constant", "max_steps": 1000}, [1] * 14),
        ({"schedule": "step", "lr_epochs": 1, "lr_factor": 0.1}, [1] * 7 + [0.1] * 7),
        ({"schedule": "exponential", "lr_epochs": 2, "lr_factor": 0.01}, [0.01 ** (t / 14) for t in range(14)]),
        ({"schedule": "constant", "warmup": 4}, [0.25, 0.5, 0.75] + [1] * 11),
    ],
    ids=["cosine", "cosine to a limit of steps", "a limit beyond the end", "step", "exponential", "warm-up"],
)
def test_a_schedule_is_laid_out_for_the_whole_run(
    options: dict, factors: list, data: Dataset, tmp_path: Path, taken: Taken
) -> None:
    """Its lengths are given in epochs, a warm-up's in steps."""
    _, outcome = train_loop(config(data, lr=2.0, **options), data, tmp_path)
    assert outcome.finished
    assert outcome.steps == len(factors)
    assert taken[1] == pytest.approx([2 * factor for factor in factors], rel=1e-12, abs=0)


def validated(npz: Path, **changes: object) -> tuple[Config, Dataset]:
    """Six batches of 30 an epoch; the last 20 training examples judge."""
    data = load("npz", npz, validation=20)
    return config(data, validation=20, **changes), data


def test_a_plateau_follows_the_cost_of_the_held_out_examples(npz: Path, tmp_path: Path, taken: Taken) -> None:
    settings, data = validated(npz, schedule="plateau", lr_epochs=1, lr_factor=0.5, lr=20.0, epochs=12, batch_size=45)
    train_loop(settings, data, tmp_path)
    best, rate, expected = float("inf"), 20.0, []
    for step, loss in values(tmp_path, "loss/test").items():
        if step:
            expected += [rate] * 4
            best, rate = min(best, loss), rate if loss < best else rate / 2
    assert taken[1] == expected
    assert rate < 10.0


def test_halving_follows_the_accuracy_and_ends_the_run_at_a_128th(npz: Path, tmp_path: Path, taken: Taken) -> None:
    """A rate that moves nothing: every epoch but the first is one without improvement."""
    settings, data = validated(npz, schedule="halve", lr_epochs=2, lr=1e-9, epochs=100)
    _, outcome = train_loop(settings, data, tmp_path)
    assert outcome.finished
    epochs = [1] + [2] * 7  # at the first rate one more, in which the first best value came
    expected = [1e-9 / 2**i for i, many in enumerate([3, *[2] * 6]) for _ in range(6 * many)]
    assert taken[1] == pytest.approx(expected)
    assert outcome.steps == 6 * sum(epochs)


@pytest.mark.parametrize(
    ("eval_every", "every", "unit"), [(0, 6, "epochs"), (4, 4, "evaluations")], ids=["epochs", "evaluations"]
)
def test_a_run_without_a_better_accuracy_for_so_long_stops_early(
    eval_every: int, every: int, unit: str, npz: Path, tmp_path: Path
) -> None:
    settings, data = validated(npz, patience=3, epochs=200, lr=10.0, eval_every=eval_every)
    _, outcome = train_loop(settings, data, tmp_path)
    accuracies = list(values(tmp_path, "accuracy/test").values())[1:]
    best = accuracies.index(max(accuracies))
    assert outcome.finished
    assert len(accuracies) == best + 1 + 3 < 200
    assert outcome.steps == every * len(accuracies)
    assert outcome.best == max(accuracies)
    assert outcome.early == f"no better accuracy for 3 {unit}"
    assert checkpoint.load(tmp_path / "best.pt")["steps"] == every * (best + 1)


# What is logged


@pytest.mark.parametrize("log_every", [1, 3, 7, 100])
def test_values_are_logged_at_the_multiples(log_every: int, data: Dataset, tmp_path: Path) -> None:
    train_loop(config(data, log_every=log_every, histogram_every=4), data, tmp_path)
    multiples = list(range(log_every, 15, log_every))
    assert {type(line["step"]) for line in running.metrics(tmp_path)} == {int}
    for tag in ("loss/train", "learning_rate", "examples_per_second", "gradient_norm/layer2.weight"):
        assert list(values(tmp_path, tag)) == multiples
    for tag in ("loss/test", "accuracy/test", "accuracy/train"):
        assert list(values(tmp_path, tag)) == [0, 7, 14]


@pytest.mark.parametrize(("histogram_every", "steps"), [(0, []), (1, list(range(15))), (4, [0, 4, 8, 12]), (99, [0])])
def test_histograms_are_logged_at_the_start_and_at_the_multiples(
    histogram_every: int, steps: list[int], data: Dataset, tmp_path: Path
) -> None:
    train_loop(config(data, log_every=5, histogram_every=histogram_every), data, tmp_path)
    events = EventAccumulator(str(tmp_path), size_guidance={"histograms": 0})
    events.Reload()
    found = {tag: [event.step for event in events.Histograms(tag)] for tag in events.Tags()["histograms"]}
    if histogram_every:
        assert found["gradients/layer1.weight"] == steps
    assert all(at == steps for at in found.values())


def test_loss_train_is_the_mean_of_the_costs_since_it_was_last_logged(data: Dataset, tmp_path: Path) -> None:
    """Step by step with a second learner."""
    settings = config(data, log_every=5, dtype="float64", schedule="constant", l2=0.01)
    train_loop(settings, data, tmp_path)
    learner, losses = learner_of(settings, data), []
    for epoch in range(2):
        for batch in epoch_order(0, epoch, 200).split(30):
            x, y = data.train.batch(batch, torch.float64)
            output = learner.model.forward(learner.parameters, x, Tape(training=True))  # type: ignore[attr-defined]
            losses.append(Quadratic().forward(output, y)[0].item())
            learner.advance(batch.unsqueeze(0), torch.tensor([1.0], dtype=torch.float64))
    logged = values(tmp_path, "loss/train")
    assert logged == pytest.approx({5: sum(losses[:5]) / 5, 10: sum(losses[5:10]) / 5})


def test_what_is_logged_of_gradients_and_updates(data: Dataset, tmp_path: Path) -> None:
    """Plain gradient descent moves every parameter by lr times its gradient."""
    train_loop(config(data, log_every=1, dtype="float64", max_steps=3), data, tmp_path)
    learner = learner_of(config(data, dtype="float64"), data)
    norms, ratios = (values(tmp_path, f"{what}/layer1.weight") for what in ("gradient_norm", "update_ratio"))
    size = learner.parameters["layer1.weight"].square().mean().sqrt().item()
    assert ratios[1] == pytest.approx(1.0 * norms[1] / size)
    x, y = data.train.batch(epoch_order(0, 0, 200)[:30], torch.float64)
    gradient = learner.backpropagate(x, y).gradients["layer1.weight"]
    assert norms[1] == pytest.approx(gradient.square().mean().sqrt().item())


@pytest.mark.sweep(4)
@pytest.mark.parametrize(
    "options",
    [
        {"log_every": 1, "histogram_every": 1},
        {"log_every": 1000, "histogram_every": 0},
        {"eval_every": 1},
        {"eval_every": 4},
        {"impl": "both"},
        {"check_every": 3},
    ],
    ids=str,
)
def test_logging_evaluating_and_checking_change_nothing(options: dict, data: Dataset, tmp_path: Path) -> None:
    for name, more in (("plain", {}), ("otherwise", options)):
        train_loop(config(data, momentum=0.9, l2=1e-3, **more), data, tmp_path / name)
    running.assert_same(*(checkpoint.load(tmp_path / name)["model"] for name in ("plain", "otherwise")))


@pytest.mark.long
@pytest.mark.parametrize("loss", LOSSES)
def test_every_cost_trains(loss: str, data: Dataset, tmp_path: Path) -> None:
    changes = {"loss": loss, "activation": ("gelu",), "lr": 0.3, "epochs": 20, "impl": "both", "dtype": "float64"}
    train_loop(config(data, **changes, log_every=99, histogram_every=0), data, tmp_path)
    losses = values(tmp_path, "loss/test")
    assert losses[140] < 0.7 * losses[0]


# Values that are not finite, though the costs and the parameters are


@pytest.mark.sweep(3)
@pytest.mark.parametrize(
    ("options", "size", "named"),
    [
        ({"clip_value": 1.0}, 3e38, "∂C/∂layer1.weight"),
        ({"optimizer": "lion"}, 3e38, "∂C/∂layer1.weight"),
        ({"optimizer": "adam"}, 1e30, "the new square_mean of layer1.weight"),
    ],
    ids=["hidden by clipping", "hidden by a sign", "a square that overflows"],
)
@pytest.mark.parametrize("impl", ["manual", "reference", "both"])
def test_a_gradient_that_overflows_stops_the_run(
    impl: str, options: dict, size: float, named: str, tmp_path: Path
) -> None:
    """Inputs so large that only a first layer of zeros lets them through."""
    split = Split(torch.full((40, 2), size), torch.arange(40) % 3)
    data = Dataset("npz", split, split, (2,), ("a", "b", "c"), "")
    settings = config(data, impl=impl, lr=1e-3, hidden=(4,), activation=("tanh", "identity"), **options)
    train_loop(settings, data, tmp_path, stop=lambda: True)
    saved = checkpoint.load(tmp_path)
    saved["model"]["layer1.weight"].zero_()
    saved["model"]["layer2.weight"].fill_(100.0).mul_(torch.tensor([[1.0], [2.0], [-3.0]]))
    checkpoint.save(saved, tmp_path / "last.pt")
    with pytest.raises(NotFiniteError, match=f"step 1: the first value that is not finite is in {named}; "):
        train_loop(settings, data, tmp_path)


@pytest.mark.parametrize(
    "impl", ["manual", *(pytest.param(impl, marks=pytest.mark.slow) for impl in ("reference", "both"))]
)
@pytest.mark.parametrize("broken", [3, 137])
def test_the_steps_are_repeated_from_where_the_run_was(
    broken: int, impl: str, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long after the last checkpoint, with dropout and a velocity: θ and all else are those of the run, to the bit."""
    options = {"epochs": 50, "schedule": "constant", "momentum": 0.5, "dropout": 0.2}
    settings = config(data, impl=impl, **options, eval_every=10_000, log_every=10_000, histogram_every=0)
    repeated: list = []
    examine, rates = Loop.examine, Loop.learning_rates

    def remember(self: Loop, indices: torch.Tensor) -> object:
        repeated.append(self.learner.state_dict())
        return examine(self, indices)

    def breaking(self: Loop, steps: int) -> torch.Tensor:
        t = self.learner.steps + 1 + torch.arange(steps)
        return torch.where(t == broken, torch.inf, rates(self, steps))

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "examine", remember)
        patch.setattr(Loop, "learning_rates", breaking)
        with pytest.raises(NotFiniteError, match=f"^step {broken}: the first value that is not finite is in the new "):
            train_loop(settings, data, tmp_path / "broken")
    assert [state["steps"] for state in repeated] == list(range(repeated[0]["steps"], broken))
    train_loop(replace(settings, max_steps=broken - 1), data, tmp_path / "whole")
    whole = checkpoint.load(tmp_path / "whole")
    for part in ("model", "optimizer"):
        running.assert_same(repeated[-1][part], whole[part])
    assert checkpoint.load(tmp_path / "broken")["steps"] == 0


# The check against autograd


@pytest.mark.parametrize(
    ("options", "step"), [({"impl": "both"}, 1), ({"impl": "manual", "check_every": 3}, 3)], ids=["both", "check-every"]
)
def test_a_wrong_gradient_stops_the_run_and_is_named(
    options: dict[str, object], step: int, npz: Path, tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tanh′ is wrong by a tenth of a millionth. Layer 1 is the only tanh, so the first that is wrong is its δ."""
    right = ACTIVATIONS["tanh"]
    wrong = replace(right, derivative=lambda z, a: right.derivative(z, a) * (1 + 1e-7))
    monkeypatch.setitem(ACTIVATIONS, "tanh", wrong)
    settings = {"dataset": "npz", "data_dir": npz, "hidden": (4, 3), "activation": ("tanh", "sigmoid", "sigmoid")}
    settings |= {"dtype": "float64", "run_dir": tmp_path / "run", "batch_size": 30}
    done = call(capsys, train.main, *flags({**settings, **options}))
    assert done.status == 1
    sentence = running.one_sentence(done.err)
    assert f"train.py: manual and reference differ at step {step}: BP2, layer 1, δ: at [" in sentence
    assert "off by 1.00e-07 of the norm (allowed 1.0e-12)" in sentence
    assert checkpoint.load(tmp_path / "run")["steps"] == 0


@pytest.mark.parametrize(
    ("dtype", "check_every", "log_every", "logged"),
    [
        ("float64", 2, 5, [5, 10]),
        ("float32", 2, 5, [5, 10]),
        ("bfloat16", 2, 5, [5, 10]),
        ("float32", 6, 2, [6, 12]),
    ],
    ids=["float64", "float32", "bfloat16", "steps without a check are logged between"],
)
def test_the_largest_error_of_the_checks_is_logged(
    dtype: str, check_every: int, log_every: int, logged: list[int], data: Dataset, tmp_path: Path
) -> None:
    changes = {"loss": "softmax-cross-entropy", "activation": ("tanh", "gelu", "identity"), "lr": 0.1}
    changes |= {"check_every": check_every, "log_every": log_every, "dtype": dtype}
    train_loop(config(data, **changes), data, tmp_path)
    assert {tensor.dtype for tensor in checkpoint.load(tmp_path)["model"].values()} == {getattr(torch, dtype)}
    errors = values(tmp_path, "gradient_check/max_relative_error")
    assert list(errors) == logged
    epsilon = torch.finfo(getattr(torch, dtype)).eps
    for error in errors.values():
        assert 0 < error < 100 * epsilon
