"""The label that a tape gives to every δ and to every parameter's gradient: the equation by which it was made."""

from types import SimpleNamespace

import pytest
import torch

from manual_backprop.layers import conv2d, dropout, linear, prelu
from manual_backprop.tape import Tape
from tests.support.against_torch import normal
from tests.support.tapes import B1, DELTA, TWO, W1, W2, X, tanh, two_layers


def made(name, equations, forward, backward=None, **more):
    return SimpleNamespace(name=name, EQUATIONS=equations, forward=forward, backward=backward, **more)


TABLE = made("table", ("TB1",), lambda ids, E: (E[ids], None), not_differentiable=("ids",))
HALVES = made(
    "halves",
    ("HA1", "HA2"),
    forward=lambda a, b: (torch.cat([a, b]), len(a)),
    backward=lambda dy, n: (2 * dy / 2).split([n, len(dy) - n]),
)
VIEW = made("view", ("VI1",), lambda x: (x.flatten(1), x.shape), lambda dy, shape: dy.view(shape))
PADDED = made(
    "padded", ("PD1",), lambda x: (torch.constant_pad_nd(x, (1, 1, 1, 1)), None), lambda dy, _: (2 * dy)[1:-1, 1:-1]
)


HANDED_ON = {
    "itself": (lambda tape, da: da, "LI1"),
    "reshaped": (lambda tape, da: da.view(7, 1, 5).squeeze(1), "LI1"),
    "transposed": (lambda tape, da: da.T.T, "LI1"),
    "expanded": (lambda tape, da: da.expand(2, 7, 5)[1], "LI1"),
    "detached": (lambda tape, da: da.detach(), "LI1"),
    "a part": (lambda tape, da: da.split([2, 3], dim=1)[0], "LI1"),
    "the other part": (lambda tape, da: da.split([2, 3], dim=1)[1], "LI1"),
    "a product of the model's own": (lambda tape, da: 2 * da, ""),
    "a sum": (lambda tape, da: tape.add("RS1", da, 2 * da), "RS1"),
    "a summand": (lambda tape, da: (tape.add("RS1", da, da), da)[1], "LI1"),
}


@pytest.mark.parametrize(("handed_on", "label"), HANDED_ON.values(), ids=HANDED_ON)
def test_a_delta_has_the_label_of_what_made_it(handed_on, label):
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
def test_each_gradient_of_a_layer_has_its_own_label(layer, arguments, d_output, parts):
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
def test_a_sum_writes_to_none_of_its_summands(observes):
    x, before = X.clone(), X.clone()
    torch.testing.assert_close(Tape(observes=observes).add("RS1", x, DELTA[:, :3], 2 * x), 3 * X + DELTA[:, :3])
    assert torch.equal(x, before)


def test_memory_that_a_label_lies_in_is_not_used_again():
    """A gradient that nobody keeps: another tensor in its place would come by its label."""
    tape = Tape(observes=True)
    tape.see("output", DELTA)
    for i in range(20):
        tape.forward(tanh, f"a{i}", normal(i, 7, 5))
        tape.backward(tanh, f"a{i}", normal(i, 7, 5))
        tape.see(f"made{i}", normal(i, 7, 5))
    assert {tape.labels[f"made{i}"] for i in range(20)} == {""}


def test_a_delta_that_the_model_makes_has_the_label_that_it_gives():
    """Even where it forgot to make one, and hands on what came in: the equation that it names is the wrong one."""
    tape, made = Tape(observes=True), 2 * DELTA
    tape.see("one way", DELTA)
    tape.see("another way", DELTA)
    tape.see("made", made, "BP1")
    tape.see("handed on", made)
    tape.see("forgotten", DELTA, "BP1")
    assert list(tape.labels.values()) == ["∂C/∂output", "∂C/∂output", "BP1", "BP1", "BP1"]
    tape.see("of one summand", tape.add("BP2", DELTA @ W2))
    assert tape.labels["of one summand"] == "BP2"


@pytest.mark.parametrize(
    ("arguments", "options"),
    [((X, W1, B1), {}), ((X, W1), {"b": B1}), ((X,), {"b": B1, "W": W1}), ((), {"b": B1, "x": X, "W": W1})],
    ids=["by place", "one by name", "two by name", "all by name"],
)
def test_a_parameter_has_the_label_of_its_arguments_place(arguments, options):
    tape = Tape(observes=True)
    tape.forward(linear, "linear", *arguments, **options)
    assert tape.equations({"W": W1, "b": B1, "unused": W2}) == {"W": ("LI2", "W"), "b": ("LI3", "b")}
    assert tape.equations({"x": X}) == {"x": ("LI1", "x")}
    assert tape.equations({"W": W1.clone(), "b": B1}) == {"b": ("LI3", "b")}  # only the parameter itself is known


def test_what_is_not_differentiable_or_not_there_takes_no_label():
    tape, kernel, mask, ids = Tape(observes=True), normal(0, 2, 3, 2, 2), torch.ones(7, 3), torch.tensor([1, 0, 1])
    tape.forward(conv2d, "conv", normal(0, 2, 3, 4, 4), kernel, None, 2)
    tape.forward(dropout, "dropout", X, mask, 0.5)
    tape.forward(TABLE, "table", ids, W1)
    expected = {"kernel": ("CV2", "W"), "E": ("TB1", "E")}
    assert tape.equations({"kernel": kernel, "mask": mask, "E": W1, "ids": ids}) == expected
    assert [len(call.given) for call in tape.calls.values()] == [2, 1, 1]


def test_a_parameter_of_calls_of_two_kinds_has_both_labels():
    tape, shared = Tape(observes=True), normal(0, 3, 3)
    tape.forward(linear, "first", X, shared, B1[:3])
    tape.forward(linear, "second", X, shared, B1[:3])  # of one kind twice
    assert tape.equations({"shared": shared}) == {"shared": ("LI2", "W")}
    tape.forward(TWO, "third", shared, shared)
    assert tape.equations({"shared": shared}) == {"shared": ("LI2 + TW1 + TW2", "W")}


def test_a_model_says_which_equations_its_parameters_have():
    tape = Tape(observes=True)
    tape.keep("linear", "layer1", X, (X,), BP3=B1, BP4=W1)
    tape.keep("tanh", "layer1.a", X)
    assert list(tape.caches) == ["layer1"]
    assert tape.equations({"W": W1, "b": B1}) == {"b": ("BP3", ""), "W": ("BP4", "")}
    assert tape.outputs == {"layer1": X, "layer1.a": X}
    assert [call.kind for call in tape.calls.values()] == ["linear", "tanh"]
