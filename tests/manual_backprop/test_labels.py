"""The label that a tape gives to every δ and to every parameter's gradient: the equation by which it was made."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from manual_backprop.layers import batch_norm, conv2d, dropout, linear, prelu
from manual_backprop.tape import Tape
from tests.support.against_torch import normal
from tests.support.networks import CNNS
from tests.support.tapes import B1, DELTA, TWO, W1, W2, X, tanh, two_layers
from training.learners.comparison import describe

TABLE = SimpleNamespace(
    name="table", EQUATIONS=("TB1",), not_differentiable=("ids",), forward=lambda ids, E: (E[ids], None), backward=None
)
HALVES = SimpleNamespace(
    name="halves",
    EQUATIONS=("HA1", "HA2"),
    forward=lambda a, b: (torch.cat([a, b]), len(a)),
    backward=lambda dy, n: (2 * dy / 2).split([n, len(dy) - n]),
)
VIEW = SimpleNamespace(
    name="view",
    EQUATIONS=("VI1",),
    forward=lambda x: (x.flatten(1), x.shape),
    backward=lambda dy, shape: dy.view(shape),
)
PADDED = SimpleNamespace(
    name="padded",
    EQUATIONS=("PD1",),
    forward=lambda x: (torch.constant_pad_nd(x, (1, 1, 1, 1)), None),
    backward=lambda dy, cache: (2 * dy)[1:-1, 1:-1],
)


# Labels of δs


@pytest.mark.parametrize(
    ("handed_on", "label"),
    [
        pytest.param(lambda tape, da: da, "LI1", id="itself"),
        pytest.param(lambda tape, da: da.view(7, 1, 5).squeeze(1), "LI1", id="reshaped"),
        pytest.param(lambda tape, da: da.T.T, "LI1", id="transposed"),
        pytest.param(lambda tape, da: da.expand(2, 7, 5)[1], "LI1", id="expanded"),
        pytest.param(lambda tape, da: da.detach(), "LI1", id="detached"),
        pytest.param(lambda tape, da: da.split([2, 3], dim=1)[0], "LI1", id="a part"),
        pytest.param(lambda tape, da: da.split([2, 3], dim=1)[1], "LI1", id="the other part"),
        pytest.param(lambda tape, da: 2 * da, "", id="a product of the model's own"),
        pytest.param(lambda tape, da: tape.add("RS1", da, 2 * da), "RS1", id="a sum"),
        pytest.param(lambda tape, da: (tape.add("RS1", da, da), da)[1], "LI1", id="a summand"),
    ],
)
def test_a_delta_has_the_label_of_what_made_it(handed_on: Any, label: str) -> None:
    tape = Tape(observes=True)
    two_layers(tape)
    da, *_ = tape.backward(linear, "second", DELTA)
    tape.see("first.a", handed_on(tape, da))
    assert tape.labels == {"second": "∂C/∂output", "first.a": label}


OF_LAYERS = {
    "two gradients": (prelu, (X, normal(0, 1)), X, lambda dz, dalpha: [("PR1", dz), ("PR2", dalpha)]),
    "two gradients in one memory": (
        HALVES,
        (X, X),
        normal(0, 14, 3),
        lambda da, db: [("HA1", da), ("HA2", db), ("HA2", db.flatten()), ("HA1", da[1:])],
    ),
    "a view of what came": (VIEW, (normal(0, 2, 3, 4),), normal(0, 2, 12), lambda dx: [("VI1", dx)]),
    "within a larger memory": (PADDED, (X,), normal(0, 9, 5), lambda dx: [("PD1", dx[2:])]),
    "one gradient, a single number": (tanh, (X.sum(),), X.sum(), lambda dz: [("AC1", dz)]),
}


@pytest.mark.parametrize(("layer", "arguments", "d_output", "parts"), OF_LAYERS.values(), ids=OF_LAYERS)
def test_each_gradient_of_a_layer_has_its_own_label(layer: Any, arguments: Any, d_output: Tensor, parts: Any) -> None:
    tape = Tape(observes=True)
    tape.forward(layer, "call", *arguments)
    gradients = tape.backward(layer, "call", d_output)
    labels = {"call": "∂C/∂output"}
    for label, delta in parts(*(gradients if isinstance(gradients, tuple) else (gradients,))):
        name = f"part {len(labels)}"
        tape.see(name, delta)
        labels[name] = label
    assert tape.labels == labels


@pytest.mark.parametrize("observes", [False, True], ids=["unobserved", "observed"])
def test_a_sum_writes_to_none_of_its_summands(observes: bool) -> None:
    x, before = X.clone(), X.clone()
    torch.testing.assert_close(Tape(observes=observes).add("RS1", x, DELTA[:, :3], 2 * x), 3 * X + DELTA[:, :3])
    assert torch.equal(x, before)


def test_memory_that_a_label_lies_in_is_not_used_again() -> None:
    """A gradient that nobody keeps: another tensor in its place would come by its label."""
    tape = Tape(observes=True)
    tape.see("output", DELTA)
    for i in range(20):
        tape.forward(tanh, f"a{i}", normal(i, 7, 5))
        tape.backward(tanh, f"a{i}", normal(i, 7, 5))
        tape.see(f"made{i}", normal(i, 7, 5))
    assert {tape.labels[f"made{i}"] for i in range(20)} == {""}


def test_a_delta_that_the_model_makes_has_the_label_that_it_gives() -> None:
    """Even where it forgot to make one, and hands on what came in: the equation that it names is the wrong one."""
    tape, made = Tape(observes=True), 2 * DELTA
    tape.see("one way", DELTA)
    tape.see("another way", DELTA)
    tape.see("made", made, "BP1")
    tape.see("handed on", made)
    tape.see("forgotten", DELTA, "BP1")
    tape.see("of one summand", tape.add("BP2", DELTA @ W2))
    assert tape.labels == {
        "one way": "∂C/∂output",
        "another way": "∂C/∂output",
        "made": "BP1",
        "handed on": "BP1",
        "forgotten": "BP1",
        "of one summand": "BP2",
    }


# Labels of parameters


@pytest.mark.parametrize(
    ("arguments", "options"),
    [((X, W1, B1), {}), ((X, W1), {"b": B1}), ((X,), {"b": B1, "W": W1}), ((), {"b": B1, "x": X, "W": W1})],
    ids=["by place", "one by name", "two by name", "all by name"],
)
def test_a_parameter_has_the_label_of_its_arguments_place(arguments: Any, options: dict[str, Tensor]) -> None:
    tape = Tape(observes=True)
    tape.forward(linear, "linear", *arguments, **options)
    assert tape.equations({"W": W1, "b": B1, "unused": W2}) == {"W": ("LI2", "W"), "b": ("LI3", "b")}
    assert tape.equations({"x": X}) == {"x": ("LI1", "x")}
    assert tape.equations({"W": W1.clone(), "b": B1}) == {"b": ("LI3", "b")}  # only the parameter itself is known


@pytest.mark.parametrize("layer", [batch_norm, batch_norm.evaluation], ids=["training", "evaluation"])
def test_running_statistics_have_no_label(layer: Any) -> None:
    p = {name: normal(seed, 3).abs() for seed, name in enumerate(("gamma", "beta", "mean", "var"))}
    tape = Tape(observes=True)
    tape.forward(layer, "norm", X, *p.values())
    assert tape.equations(p) == {"gamma": ("BN2", "gamma"), "beta": ("BN1", "beta")}


def test_what_is_not_differentiable_or_not_there_takes_no_label() -> None:
    tape, kernel, mask, ids = Tape(observes=True), normal(0, 2, 3, 2, 2), torch.ones(7, 3), torch.tensor([1, 0, 1])
    tape.forward(conv2d, "conv", normal(0, 2, 3, 4, 4), kernel, None, 2)
    tape.forward(dropout, "dropout", X, mask, 0.5)
    tape.forward(TABLE, "table", ids, W1)
    expected = {"kernel": ("CV2", "W"), "E": ("TB1", "E")}
    assert tape.equations({"kernel": kernel, "mask": mask, "E": W1, "ids": ids}) == expected
    assert [len(call.given) for call in tape.calls.values()] == [2, 1, 1]


def test_a_parameter_of_calls_of_two_kinds_has_both_labels() -> None:
    tape, shared = Tape(observes=True), normal(0, 3, 3)
    tape.forward(linear, "first", X, shared, B1[:3])
    tape.forward(linear, "second", X, shared, B1[:3])  # of one kind twice
    assert tape.equations({"shared": shared}) == {"shared": ("LI2", "W")}
    tape.forward(TWO, "third", shared, shared)
    assert tape.equations({"shared": shared}) == {"shared": ("LI2 + TW1 + TW2", "W")}


def test_a_model_says_which_equations_its_parameters_have() -> None:
    tape = Tape(observes=True)
    tape.keep("linear", "layer1", X, (X,), BP3=B1, BP4=W1)
    tape.keep("tanh", "layer1.a", X)
    assert list(tape.caches) == ["layer1"]
    assert tape.equations({"W": W1, "b": B1}) == {"b": ("BP3", ""), "W": ("BP4", "")}
    assert tape.outputs == {"layer1": X, "layer1.a": X}
    assert [call.kind for call in tape.calls.values()] == ["linear", "tanh"]


MESSAGES = {
    "loss": "the cost C",
    "δ output": "∂C/∂output",
    "δ linear": "∂C/∂output, linear, δ",
    "δ stage2.conv": "MP1, stage 2 conv, δ",
    "∂C/∂a stage1.block1.norm2": "RS1, stage 1 block 1 norm 2, ∂C/∂a",
    "z stage1.conv": "stage 1 conv, z",
    "dstage1.block2.norm1.weight": "BN2, stage 1 block 2 norm 1, ∂C/∂γ",
    "dlinear.bias": "LI3, linear, ∂C/∂b",
    "buffer stage1.norm.running_var": "stage 1 norm, running_var",
    "memory h": "h, memory",
}


def test_an_error_message_names_the_equation() -> None:
    problem = CNNS["two blocks"]
    tape, params = Tape(training=True, buffers=problem.buffers, observes=True), problem.params
    problem.model.backward(params, problem.model.forward(params, problem.data[0], tape), {}, tape)
    result: Any = SimpleNamespace(labels=tape.labels, equations=tape.equations(params))
    assert {name: describe(name, result) for name in MESSAGES} == MESSAGES
