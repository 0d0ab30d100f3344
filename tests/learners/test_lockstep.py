"""Lock step never stops who is right, whatever the format, optimizer and settings; and apart both stay together."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from gallery.parts import NamedOutput, Nudged
from gallery.right.modules import Sequence
from manual_backprop.models.mlp import MLP
from manual_backprop.models.recurrent import CELLS
from manual_backprop.parameters import Parameters
from manual_backprop.tape import Tape
from tests.support.both_ways import LOSSES, TWIN_LOSSES
from tests.support.lockstep import DTYPES, NAMES, SOFTMAX, advance, in_epochs, learner
from tests.support.problems import (
    METHODS,
    checked_learner,
    manual_learner,
    noise_split,
    random_batches,
    rates,
    reference_learner,
    relative_difference,
)
from training.data import Split
from training.errors import UserError
from training.learners.checked import MAX_ERROR
from training.learners.comparison import compare_passes
from training.learners.reference import ReferenceLearner
from training.learners.step import backpropagate

LIMITS = {torch.float64: 1e-12, torch.float32: 1e-3, torch.bfloat16: 0.5}
LIMITS_OF_MLPS = {torch.float64: 1e-13, torch.float32: 1e-4, torch.bfloat16: 0.5}

exact_and_single = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


def assert_agreed(both, name, losses):
    assert losses.isfinite().all()
    assert both.proof.steps == both.steps == len(losses)
    dtype = both.manual.dtype
    if name not in ("lenet5", "cnn") or dtype == torch.float64:  # below, pixels tie that do not in truth
        assert both.metrics[MAX_ERROR] < (LIMITS_OF_MLPS if name == "mlp" else LIMITS)[dtype]


def slow_if(slow, *values, **options):
    return pytest.param(*values, marks=[pytest.mark.slow] * slow, **options)


@pytest.mark.sweep(4)
@pytest.mark.parametrize(
    ("name", "dtype"),
    [slow_if(d == torch.bfloat16 and name in ("lenet5", "cnn"), name, d) for name in NAMES for d in DTYPES],
    ids=str,
)
def test_no_false_alarm(name, dtype):
    """And every parameter and running statistic moves, but those whose gradient is zero in exact arithmetic."""
    both = learner(name, "both", dtype)
    start = both.state_dict()["model"]
    assert_agreed(both, name, advance(both, 3))
    end = both.state_dict()["model"]
    assert {key for key in start if torch.equal(start[key], end[key])} <= both.manual.zeros.keys()


def optimized():
    """The perceptron and momentum in every format; every other family and method in one, so that all pairs occur."""
    for i, name in enumerate(NAMES):
        for j, method in enumerate(METHODS):
            rounded = (name, method) == ("cell", "lion")  # where c is 0 but for its rounding
            every = name == "mlp" or method == "momentum" or rounded
            for dtype in DTYPES if every else [DTYPES[(i + j) % 3]]:
                mark = pytest.mark.slow if name == "mlp" else pytest.mark.long
                marks = [] if (name, dtype) == ("mlp", torch.float64) else [mark]
                yield pytest.param(name, method, dtype, marks=marks, id=f"{name}, {method}, {dtype}")


@pytest.mark.parametrize(("name", "method", "dtype"), [*optimized()])
def test_no_false_alarm_whatever_the_optimizer(name, method, dtype):
    """Not even with all that an optimizer makes of gradients that are zero (dead pixels) or nearly so."""
    both = learner(name, "both", dtype, l2=1e-3, **METHODS[method])
    steps = 4 if (name, dtype) == ("mlp", torch.float64) else 100 if method == "momentum" else 20
    rate = {"sgd": 0.05, "nesterov": 0.05, "lion": 3e-4}.get(METHODS[method]["optimizer"], 1e-3)
    losses = in_epochs(both, steps, rate)
    assert_agreed(both, name, losses)
    learns = steps == 100 and dtype != torch.bfloat16  # whose rounding takes most of such small steps away
    assert not learns or losses[-20:].mean() < losses[:20].mean()


TEXT = {"dataset": "text", "context": 7}
TANH, LEAKY = ("tanh", "tanh", "identity"), ("leaky_relu", "leaky_relu", "identity")
GELU = {"activation": ("gelu", "softplus", "identity"), "loss": "sigmoid-cross-entropy", "l2": 1e-2}
SETTINGS = {
    "sigmoid, quadratic": ("mlp", 3.0, {"activation": ("sigmoid",), "loss": "quadratic", "momentum": 0.5}),
    "tanh": ("mlp", 0.1, {"activation": TANH, "l2": 1e-3}),
    "relu, smoothed": ("mlp", 0.1, {"activation": ("relu",), "label_smoothing": 0.15, "init": "he"}),
    "gelu and softplus": ("mlp", 0.3, GELU),
    "leaky relu": ("mlp", 0.02, {"activation": LEAKY, "loss": "squared-error", "init": "xavier"}),
    "l1": ("mlp", 0.1, {"l1": 1e-3}),
    "clipping by norm": ("mlp", 0.1, {"clip_norm": 0.1, "l1": 1e-3}),
    "clipping by value": ("mlp", 0.1, {"clip_value": 1e-3}),
    "max-norm": ("mlp", 0.1, {"max_norm": 1.0}),
    "dropout": ("mlp", 0.1, {"dropout": 0.4}),
    "dropout and max-norm": ("mlp", 0.1, {"dropout": 0.25, "max_norm": 1.5, "clip_norm": 1.0}),
    "LeNet-5 of scaled tanh": ("lenet5", 0.02, {"activation": ("scaled_tanh",), "init": "xavier"}),
    "LeNet-5 of relu": ("lenet5", 0.02, {"activation": ("relu",), "init": "xavier"}),
    "dropout of channels": ("cnn", 0.05, {"dropout": 0.3}),
    "no blocks": ("cnn", 0.05, {"blocks": 0}),
    "leaky relu between norms": ("cnn", 0.05, {"activation": ("leaky_relu",)}),
    "softplus between norms": ("cnn", 0.05, {"activation": ("softplus",)}),
    "three stages to one pixel": ("cnn", 0.05, {"channels": (3, 4, 5)}),
    "limits of kernels": ("cnn", 0.05, {"l1": 1e-3, "clip_norm": 0.5, "max_norm": 1.0}),
    "a segment of one character": ("cell", 0.01, {"context": 1}),
    "rows in both directions": ("recurrent", 0.05, {"cell": "rnn", "activation": ("relu",), "bidirectional": True}),
    "rows with dropout": ("recurrent", 0.05, {"cell": "gru", "dropout": 0.3}),
    "a text with dropout": ("recurrent", 0.1, {"dropout": 0.3, **TEXT}),
}


def in_two_formats():
    """Each of SETTINGS in float64, and for more steps in one of the others."""
    for i, (title, setting) in enumerate(SETTINGS.items()):
        for dtype, marks in ((DTYPES[0], []), (DTYPES[1 + i % 2], [pytest.mark.long])):
            yield pytest.param(*setting, dtype, marks=marks, id=f"{title}, {dtype}")


@pytest.mark.sweep(4)
@pytest.mark.parametrize(("name", "lr", "options", "dtype"), [*in_two_formats()])
def test_no_false_alarm_whatever_the_settings(name, lr, options, dtype):
    method = {} if name == "cell" else {"optimizer": "sgd", "momentum": 0.9}
    both = learner(name, "both", dtype, **method | options)
    assert_agreed(both, name, in_epochs(both, 3 if dtype == torch.float64 else 20, lr))


@pytest.mark.long
@exact_and_single
def test_memorizing_until_hardly_a_gradient_is_left_raises_no_alarm(sample, dtype):
    few = Split(sample.train.x[:200], sample.train.y[:200])
    model = MLP((784, 16, 16, 10), ("relu", "relu", "identity"))
    manual = manual_learner(model, SOFTMAX["loss"], few, dtype=dtype, init="he", momentum=0.9)
    learner = checked_learner(manual, SOFTMAX["loss"], every=5)
    losses = learner.advance(random_batches(700, 20, 200), rates(700, 0.05))
    assert losses[-100:].median() < 1e-3
    assert losses[-100:].min() < 1e-4


@pytest.mark.slow
@exact_and_single
def test_a_minimum_where_the_examples_gradients_cancel_raises_no_alarm(dtype):
    """A regression of noise, all of it in every batch: the δs stay, and their sums go to rounding."""
    manual = manual_learner(MLP((5, 5), ("tanh",)), "quadratic", noise_split(), dtype=dtype)
    learner = checked_learner(manual, "quadratic", every=6)
    learner.advance(torch.arange(60).expand(150, 60), rates(150, 1.0))
    result = manual.backpropagate(*noise_split().batch(torch.arange(60), dtype))
    assert result.gradients["layer1.weight"].norm() < 1e-6
    assert result.deltas["layer1"].norm() > 0.05


@pytest.mark.parametrize("scale", [10.0, 30.0, 1000.0])
@exact_and_single
def test_a_single_confident_example_raises_no_alarm(dtype, scale):
    """Logits of thousands: p − y is nothing but rounding, or exactly zero."""
    train = Split(torch.eye(3, dtype=torch.float64), torch.arange(3))
    manual = manual_learner(MLP((3, 3), ("identity",)), SOFTMAX["loss"], train, dtype=dtype)
    manual.params["layer1.weight"].copy_(scale * torch.eye(3))
    manual.params["layer1.bias"].zero_().add_(0.1)
    checked_learner(manual, SOFTMAX["loss"]).advance(torch.tensor([[0, 1, 2]]), rates(1, 0.1))


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["tanh", "gelu"])
def test_saturated_and_underflowing_layers_raise_no_alarm(sample, activation):
    manual = manual_learner(MLP((784, 16, 16, 10), (activation,) * 3), "quadratic", sample.train, momentum=0.9)
    checked_learner(manual, "quadratic", every=3).advance(random_batches(60, 10, 10_000), rates(60, 0.5))


def test_a_gradient_that_is_declared_to_be_zero_costs_no_measuring(monkeypatch):
    """Lock step measures how rounding is magnified only where something differs, as the undeclared gradient does."""

    monkeypatch.setattr("training.learners.comparison.magnification", lambda *given: pytest.fail("something differs"))
    advance(learner("block", "both"), 6)
    both = learner("block", "both")
    both.manual.zeros = {}
    with pytest.raises(pytest.fail.Exception, match="something differs"):
        advance(both, 15)


def test_a_z_on_the_other_side_of_a_kink_by_rounding_is_no_alarm():
    manual = manual_learner(Nudged((2, 3, 2), ("relu", "identity")), "quadratic", noise_split())
    manual.params["layer1.weight"].copy_(torch.tensor([[0.5, 0.5], [0.3, -0.2], [0.25, 0.25]]))
    manual.params["layer1.bias"].zero_()
    x, y = torch.tensor([[1.0, -1.0], [0.5, 0.25]], dtype=torch.float64), torch.tensor([0, 1])
    reference = reference_learner(manual, "quadratic")
    mine, other = manual.backpropagate(x, y), reference.backpropagate(x, y)
    assert not torch.equal(mine.deltas["layer1"] == 0, other.deltas["layer1"] == 0)
    assert compare_passes(manual, [reference], x, y).report.passed


SIGMOID = {"activation": ("sigmoid",), "loss": "quadratic", "init": "scaled-normal"}
SMOOTH = {"activation": ("tanh", "gelu", "identity"), "l2": 1e-3, "label_smoothing": 0.15}
RELU = {"activation": ("relu", "leaky_relu", "softplus"), "loss": "squared-error", "init": "he"}
FASTER = {"sgd": 0.02, "momentum": 0.02, "nesterov": 0.02, "adagrad": 0.01, "adam": 3e-3, "muon": 3e-3}
SGD = {"optimizer": "sgd", "momentum": 0.9, "l2": 1e-4}
MOVED = SGD | {"shift": 2, "rotate": 10.0}
LENET = {"activation": ("scaled_tanh",), "init": "xavier"}
CNN = {"channels": (4, 6), "activation": ("silu",), "init": "he", "dropout": 0.2}
LONG_RUNS = {method: ("mlp", FASTER.get(method, 3e-4), SMOOTH | of) for method, of in METHODS.items()} | {
    "the default": ("mlp", 3.0, SIGMOID),
    "relu": ("mlp", 0.1, RELU),
    "sigmoids all through": ("mlp", 0.5, {"activation": ("sigmoid",), "loss": "sigmoid-cross-entropy"}),
    "LeNet-5": ("lenet5", 0.02, LENET | SGD),
    "LeNet-5, shifted and turned": ("lenet5", 0.02, LENET | MOVED),
    "CNN": ("cnn", 0.05, CNN | SGD | {"activation": ("relu",), "dropout": 0.0}),
    "CNN with dropout, shifted and turned": ("cnn", 0.05, CNN | MOVED),
    **{f"{cell}, rows": ("recurrent", 0.01, {"cell": cell}) for cell in CELLS},
    **{f"{cell}, text": ("recurrent", 0.01, {"cell": cell, **TEXT}) for cell in CELLS},
}


@pytest.mark.long
@pytest.mark.parametrize(("name", "lr", "options"), LONG_RUNS.values(), ids=LONG_RUNS)
def test_hundreds_of_steps_apart_end_at_the_same_parameters(name, lr, options):
    """And at the same running statistics."""
    steps = 1000 if name == "mlp" else 200
    manual, reference = (learner(name, impl, **SOFTMAX | options) for impl in ("manual", "reference"))
    start = manual.state_dict()["model"]
    indices = random_batches(steps, 32, len(manual.train))
    losses, their_losses = (one.advance(indices, rates(steps, lr)) for one in (manual, reference))
    end, theirs = manual.state_dict()["model"], reference.state_dict()["model"]
    assert relative_difference(end, theirs) < 1e-9
    assert_close(losses, their_losses, rtol=1e-9, atol=0)
    for key in manual.buffers:
        assert_close(end[key], theirs[key], rtol=1e-8, atol=1e-12)
        assert end[key].is_floating_point() or end[key].item() == steps
    assert losses[-steps // 10 :].mean() < 0.8 * losses[:10].mean()  # they went somewhere
    assert relative_difference(start, end) > 0.05


# What the autograd learner sees of its module: each call's output and δ, whatever the module returns


def test_of_a_module_with_several_outputs_each_is_seen():
    torch.manual_seed(0)
    x, y = torch.randn(7, 6, dtype=torch.float64), torch.randint(3, (7,))
    module = Sequence().double()
    learner = ReferenceLearner(module, TWIN_LOSSES["softmax-cross-entropy"], Split(x, y), dtype=torch.float64)
    result = learner.backpropagate(x, y)

    outputs, (h, c) = module.lstm(x.view(7, 3, 2))
    parts = [tensor.detach().requires_grad_() for tensor in (outputs, h, c)]
    logits = module.linear(parts[0][:, -1] + parts[1][0] * parts[2][0])
    nn.functional.cross_entropy(logits, y).backward()
    assert list(result.outputs) == ["lstm.y", "lstm.h", "lstm.c", "linear"]
    for name, part in zip("yhc", parts, strict=True):
        assert_close(result.outputs[f"lstm.{name}"], part.detach())
        assert_close(result.deltas[f"lstm.{name}"], part.grad)
    moved = {name: tensor + 1 for name, tensor in result.outputs.items()}
    elsewhere = learner.backpropagate(x, y, at=type(result)(result.loss, {}, {}, moved, {}, {}))
    assert_close(elsewhere.outputs["lstm.h"], result.outputs["lstm.h"])
    expected = module.linear(moved["lstm.y"][:, -1] + moved["lstm.h"][0] * moved["lstm.c"][0])
    assert_close(elsewhere.outputs["linear"], expected.detach())


def test_no_call_has_the_name_of_the_models_output():
    params = Parameters({"output.weight": (3, 5), "output.bias": (3,)})
    x, y = torch.ones(4, 5), torch.tensor([0, 1, 2, 0])
    with pytest.raises(UserError, match=r"^a call of NamedOutput is named output, the name of the model's own output"):
        backpropagate(NamedOutput(), LOSSES["quadratic"], params, x, y, params.zeros_like(), Tape(observes=True))
