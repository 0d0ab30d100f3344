"""The training loop: which examples in which order, what is logged when, and the check against autograd."""

from dataclasses import replace
from math import cos, inf, pi

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from manual_backprop.layers.activations import ACTIVATIONS
from manual_backprop.losses import Quadratic
from manual_backprop.tape import Tape
from tests.support import running
from tests.support.refusals import assert_refused
from tests.support.running import call, flags, learner_of, resolved, train_loop, values
from training import checkpoint
from training.data import Dataset, Split, load
from training.data.order import epoch_order
from training.families.configure import configure
from training.loop import NotFiniteError


def config(data, **changes):
    settings = {"hidden": (4, 3), "activation": ("tanh", "sigmoid", "sigmoid"), "lr": 1.0, "batch_size": 30}
    return resolved(configure(**(settings | {"epochs": 2} | changes)), data)


def test_every_epoch_is_a_permutation_of_its_own_that_depends_on_seed_and_epoch_only():
    orders = {(seed, epoch): epoch_order(seed, epoch, 1000) for seed in (0, 1, 2**63 - 1) for epoch in (0, 1, 2, 99)}
    for order in orders.values():
        assert torch.equal(order.sort().values, torch.arange(1000))
    assert len({tuple(order.tolist()) for order in orders.values()}) == len(orders)
    torch.manual_seed(1234)
    epoch_order(4, 6, 17)
    assert torch.equal(epoch_order(1, 2, 1000), orders[1, 2])


SIZES = {30: [30] * 6 + [20], 200: [200], 500: [200], 199: [199, 1], 100: [100, 100]}


@pytest.mark.parametrize("batch_size", SIZES)
def test_an_epoch_takes_every_example_once_the_smaller_last_batch_included(batch_size, data, tmp_path, taken):
    train_loop(config(data, seed=3, batch_size=batch_size), data, tmp_path)
    assert [len(batch) for batch in taken[0]] == SIZES[batch_size] * 2
    assert [i for batch in taken[0] for i in batch] == [
        *epoch_order(3, 0, 200).tolist(),
        *epoch_order(3, 1, 200).tolist(),
    ]


SCHEDULES = {
    "cosine": ({}, [(1 + cos(pi * t / 14)) / 2 for t in range(14)]),
    "cosine to a limit": ({"max_steps": 4, "epochs": 100}, [1, (2 + 2**0.5) / 4, 0.5, (2 - 2**0.5) / 4]),
    "constant, limit beyond the end": ({"max_steps": 1000}, [1] * 14),
    "step": ({"lr_epochs": 1, "lr_factor": 0.1}, [1] * 7 + [0.1] * 7),
    "exponential": ({"lr_epochs": 2, "lr_factor": 0.01}, [0.01 ** (t / 14) for t in range(14)]),
    "constant, warm-up": ({"warmup": 4}, [0.25, 0.5, 0.75] + [1] * 11),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_is_laid_out_for_the_whole_run(name, data, tmp_path, taken):
    """Its lengths are given in epochs, a warm-up's in steps."""
    options, factors = SCHEDULES[name]
    schedule = name.replace(",", "").split()[0]
    _, outcome = train_loop(config(data, lr=2.0, schedule=schedule, **options), data, tmp_path)
    assert (outcome.finished, outcome.steps) == (True, len(factors))
    assert taken[1] == pytest.approx([2 * factor for factor in factors], rel=1e-12, abs=0)


def validated(npz, **changes):
    """Six batches of 30 an epoch; the last 20 training examples judge."""
    data = load("npz", npz, validation=20)
    return config(data, validation=20, **changes), data


def test_a_plateau_follows_the_cost_of_the_held_out_examples(npz, tmp_path, taken):
    settings = {"schedule": "plateau", "lr_epochs": 1, "lr_factor": 0.5, "lr": 20.0, "epochs": 12, "batch_size": 45}
    train_loop(*validated(npz, **settings), tmp_path)
    best, rate, expected = inf, 20.0, []
    for step, loss in values(tmp_path, "loss/test").items():
        if step:
            expected += [rate] * 4
            best, rate = min(best, loss), rate if loss < best else rate / 2
    assert taken[1] == expected
    assert rate < 10.0


def test_halving_follows_the_accuracy_and_ends_the_run_at_a_128th(npz, tmp_path, taken):
    """A rate that moves nothing: every epoch but the first is one without improvement."""
    _, outcome = train_loop(*validated(npz, schedule="halve", lr_epochs=2, lr=1e-9, epochs=100), tmp_path)
    epochs = [3, *[2] * 6]  # at the first rate one more, in which the first best value came
    assert taken[1] == pytest.approx([1e-9 / 2**i for i, many in enumerate(epochs) for _ in range(6 * many)])
    assert (outcome.finished, outcome.steps) == (True, 6 * sum(epochs))


@pytest.mark.parametrize(("eval_every", "every", "unit"), [(0, 6, "epochs"), (4, 4, "evaluations")])
def test_a_run_without_a_better_accuracy_for_so_long_stops_early(eval_every, every, unit, npz, tmp_path):
    _, outcome = train_loop(*validated(npz, patience=3, epochs=200, lr=10.0, eval_every=eval_every), tmp_path)
    accuracies = list(values(tmp_path, "accuracy/test").values())[1:]
    best = accuracies.index(max(accuracies))
    assert len(accuracies) == best + 1 + 3 < 200
    assert (outcome.finished, outcome.steps, outcome.best) == (True, every * len(accuracies), max(accuracies))
    assert outcome.early == f"no better accuracy for 3 {unit}"
    assert checkpoint.load(tmp_path / "best.pt")["steps"] == every * (best + 1)


@pytest.mark.parametrize(("log_every", "histogram_every"), [(1, 4), (3, 0), (7, 1), (100, 99)])
def test_values_and_histograms_are_logged_at_the_multiples(log_every, histogram_every, data, tmp_path):
    train_loop(config(data, log_every=log_every, histogram_every=histogram_every), data, tmp_path)
    assert {type(line["step"]) for line in running.metrics(tmp_path)} == {int}
    for tag in ("loss/train", "learning_rate", "examples_per_second", "gradient_norm/layer2.weight"):
        assert list(values(tmp_path, tag)) == list(range(log_every, 15, log_every))
    for tag in ("loss/test", "accuracy/test", "accuracy/train"):
        assert list(values(tmp_path, tag)) == [0, 7, 14]
    events = EventAccumulator(str(tmp_path), size_guidance={"histograms": 0}).Reload()
    steps = {tag: [event.step for event in events.Histograms(tag)] for tag in events.Tags()["histograms"]}
    assert ("gradients/layer1.weight" in steps) == bool(histogram_every)
    assert all(at == list(range(0, 15, histogram_every)) for at in steps.values())


def test_what_is_logged_of_costs_gradients_and_updates(data, tmp_path):
    """Step by step with a second learner: the mean cost since it was last logged, the last gradient and update."""
    settings = config(data, log_every=5, dtype="float64", schedule="constant", l2=0.01)
    train_loop(settings, data, tmp_path)
    learner, losses, logged = (
        learner_of(settings, data),
        [],
        {"loss/train": {}, "gradient_norm": {}, "update_ratio": {}},
    )
    for step, batch in enumerate([*epoch_order(0, 0, 200).split(30), *epoch_order(0, 1, 200).split(30)], 1):
        x, y = data.train.batch(batch, torch.float64)
        output = learner.model.forward(learner.parameters, x, Tape(training=True))
        losses.append(Quadratic().forward(output, y)[0].item())
        weight, gradient = learner.parameters["layer1.weight"].clone(), learner.backpropagate(x, y).gradients
        learner.advance(batch.unsqueeze(0), torch.tensor([1.0], dtype=torch.float64))
        if step % 5 == 0:
            update = learner.parameters["layer1.weight"] - weight
            logged["loss/train"][step] = sum(losses[-5:]) / 5
            logged["gradient_norm"][step] = gradient["layer1.weight"].square().mean().sqrt().item()
            logged["update_ratio"][step] = (update.square().mean() / weight.square().mean()).sqrt().item()
    for tag, expected in logged.items():
        assert values(tmp_path, tag if "/" in tag else f"{tag}/layer1.weight") == pytest.approx(expected)


CHANGE_NOTHING = [
    {"log_every": 1, "histogram_every": 1},
    {"log_every": 1000, "histogram_every": 0},
    *({"eval_every": 1}, {"eval_every": 4}, {"impl": "both"}, {"check_every": 3}),
]


@pytest.mark.sweep(4)
@pytest.mark.parametrize("options", CHANGE_NOTHING, ids=str)
def test_logging_evaluating_and_checking_change_nothing(options, data, tmp_path):
    for name, more in (("plain", {}), ("otherwise", options)):
        train_loop(config(data, momentum=0.9, l2=1e-3, **more), data, tmp_path / name)
    running.assert_same(*(checkpoint.load(tmp_path / name)["model"] for name in ("plain", "otherwise")))


# Values that are not finite, though the costs and the parameters are

OVERFLOWS = {
    "hidden by clipping": ({"clip_value": 1.0}, 3e38, "∂C/∂layer1.weight"),
    "hidden by a sign": ({"optimizer": "lion"}, 3e38, "∂C/∂layer1.weight"),
    "a square that overflows": ({"optimizer": "adam"}, 1e30, "the new square_mean of layer1.weight"),
}


@pytest.mark.sweep(3)
@pytest.mark.parametrize(("options", "size", "named"), OVERFLOWS.values(), ids=OVERFLOWS)
@pytest.mark.parametrize("impl", ["manual", "reference", "both"])
def test_a_gradient_that_overflows_stops_the_run(impl, options, size, named, tmp_path):
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


@pytest.mark.parametrize(("options", "step"), [({"impl": "both"}, 1), ({"impl": "manual", "check_every": 3}, 3)])
def test_a_wrong_gradient_stops_the_run_and_is_named(options, step, npz, tmp_path, capsys, monkeypatch):
    """tanh′ is wrong by a tenth of a millionth. Layer 1 is the only tanh, so the first that is wrong is its δ."""
    right = ACTIVATIONS["tanh"]
    wrong = replace(right, derivative=lambda z, a: right.derivative(z, a) * (1 + 1e-7))
    monkeypatch.setitem(ACTIVATIONS, "tanh", wrong)
    settings = {"dataset": "npz", "data_dir": npz, "hidden": (4, 3), "activation": ("tanh", "sigmoid", "sigmoid")}
    settings |= {"dtype": "float64", "run_dir": tmp_path / "run", "batch_size": 30}
    said = f"train.py: manual and reference differ at step {step}: BP2, layer 1, δ: this is 1.0000001 times"
    off = "off by 1.00e-07 of the norm (allowed 1.0e-12)"
    assert_refused(call(capsys, train.main, *flags(settings | options)), said, off, status=1)
    assert checkpoint.load(tmp_path / "run")["steps"] == 0


@pytest.mark.parametrize(
    ("dtype", "check_every", "log_every", "logged"),
    [(dtype, 2, 5, [5, 10]) for dtype in ("float64", "float32", "bfloat16")]
    + [pytest.param("float32", 6, 2, [6, 12], id="steps without a check are logged between")],
)
def test_the_largest_error_of_the_checks_is_logged(dtype, check_every, log_every, logged, data, tmp_path):
    changes = {"loss": "softmax-cross-entropy", "activation": ("tanh", "gelu", "identity"), "lr": 0.1}
    train_loop(config(data, **changes, check_every=check_every, log_every=log_every, dtype=dtype), data, tmp_path)
    assert {tensor.dtype for tensor in checkpoint.load(tmp_path)["model"].values()} == {getattr(torch, dtype)}
    errors = values(tmp_path, "gradient_check/max_relative_error")
    assert list(errors) == logged
    assert all(0 < error < 100 * torch.finfo(getattr(torch, dtype)).eps for error in errors.values())
