"""What a tape promises: caches once, names once, and an equation of every layer for every gradient."""

import importlib
import inspect
import re
from inspect import signature
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from manual_backprop import layers
from manual_backprop.layers import conv2d, linear
from manual_backprop.models.mlp import MLP
from manual_backprop.tape import Tape, kind
from tests.support.against_torch import normal
from tests.support.tapes import B1, B2, DELTA, TWO, W1, W2, X, tanh, two_layers
from training.learners.comparison import SYMBOLS
from training.learners.verification import examples_of, layer_examples, outputs_of

Z1 = X @ W1.T + B1
# Behind the cache is what else the forward pass has to say.
TALKATIVE = SimpleNamespace(
    name="talkative", EQUATIONS=("TA1",), forward=lambda x: (2 * x, "cache", x.sum(), len(x)), backward=None
)
HELD = r"^the tape holds a cache of second already: give each call a name of its own$"
NO_CACHE = r"^the tape has no cache of second: a backward pass needs a forward pass that records$"
observed_or_not = pytest.mark.parametrize("observes", [False, True], ids=["unobserved", "observed"])


@observed_or_not
def test_a_cache_is_handed_out_once_and_is_gone(observes):
    tape = Tape(observes=observes)
    assert torch.equal(two_layers(tape), Z1.tanh() @ W2.T + B2)
    assert list(tape.caches) == ["first", "first.a", "second"]
    da, dW, db = tape.backward(linear, "second", DELTA)
    assert list(tape.caches) == ["first", "first.a"]
    for actual, expected in ((da, DELTA @ W2), (dW, DELTA.T @ Z1.tanh()), (db, DELTA.sum(0))):
        assert torch.equal(actual, expected)
    for again in (lambda: tape.backward(linear, "second", DELTA), lambda: tape.take("second")):
        with pytest.raises(ValueError, match=NO_CACHE):
            again()
    dz = tape.backward(tanh, "first.a", da)
    assert torch.equal(dz, da * (1 - Z1.tanh().square()))
    assert list(tape.caches) == ["first"]
    x, W = tape.take("first")
    assert x is X
    assert W is W1
    assert tape.caches == {}
    two_layers(tape)  # a second pass over the same tape


def test_a_backward_behind_a_forward_that_did_not_record_is_refused():
    tape = Tape(records=False)
    output = two_layers(tape)
    tape.keep("linear", "third", output, (output,))
    assert tape.caches == {}
    assert torch.equal(output, two_layers(Tape()))
    with pytest.raises(ValueError, match=NO_CACHE):
        tape.backward(linear, "second", DELTA)


@observed_or_not
def test_a_name_used_twice_is_refused(observes):
    tape = Tape(observes=observes)
    two_layers(tape)
    for again in (lambda: tape.forward(linear, "second", X, W1, B1), lambda: tape.keep("linear", "second", X, (X,))):
        with pytest.raises(ValueError, match=HELD):
            again()


@observed_or_not
def test_outputs_come_back_with_what_stands_behind_the_cache(observes):
    tape = Tape(observes=observes)
    y, total, count = tape.forward(TALKATIVE, "talk", X)
    assert torch.equal(y, 2 * X)
    assert (total, count) == (X.sum(), 7)
    assert tape.caches == {"talk": "cache"}
    assert list(tape.outputs) == ["talk"] * observes


@observed_or_not
def test_options_reach_both_ways(observes):
    x, W, tape = normal(0, 2, 3, 6, 5), normal(0, 4, 3, 3, 3), Tape(observes=observes)
    z = tape.forward(conv2d, "conv", x, W, padding=1)
    dx, dW = tape.backward(conv2d, "conv", z, need_dx=False)
    assert (z.shape, dx, dW.shape) == ((2, 4, 6, 5), None, W.shape)


@observed_or_not
def test_a_layer_of_several_outputs_has_a_name_and_a_delta_for_each(observes):
    tape, (a, b, dy, dh) = Tape(observes=observes), (normal(seed, 4, 3) for seed in range(4))
    y, h = tape.forward(TWO, "two", a, b)
    assert list(tape.caches) == ["two"]
    da, db = tape.backward(TWO, "two", dy, dh)
    for actual, expected in ((y, a + b), (h, a * b), (da, dy + dh * b), (db, dy + dh * a)):
        assert torch.equal(actual, expected)
    assert tape.caches == {}
    tape.see("b", db)
    tape.see("a", da)
    assert list(tape.calls) == ["two"] * observes
    assert ids(tape.outputs) == (ids({"two.y": y, "two.h": h}) if observes else {})
    assert ids(tape.deltas) == (ids({"two.y": dy, "two.h": dh, "b": db, "a": da}) if observes else {})
    assert (tape.labels.get("a"), tape.labels.get("b")) == (("TW1", "TW2") if observes else (None, None))


def ids(tensors):
    """Which tensor is which."""
    return {name: id(tensor) for name, tensor in tensors.items()}


def test_every_output_is_there_and_has_its_delta():
    mute = SimpleNamespace(name="mute", OUTPUTS=("y", "h", "c"), EQUATIONS=("MU1",), forward=lambda x: (x, None))
    with pytest.raises(ValueError, match=r"zip\(\)"):
        Tape(records=False, observes=True).forward(mute, "mute", X)
    tape = Tape(observes=True)
    tape.forward(TWO, "two", X, X)
    with pytest.raises(ValueError, match=r"zip\(\)"):
        tape.backward(TWO, "two", X)


def test_a_tape_that_does_not_observe_keeps_nothing():
    model = MLP((3, 5, 4), ("tanh", "relu"))
    params = {name: torch.ones(shape) for name, shape in model.shapes.items()}
    tape = Tape(training=True, need_dx=True)
    model.backward(params, model.forward(params, torch.ones(2, 3), tape), {}, tape)
    tape.backward(tanh, "again", tape.add("XX1", X, X) + 0 * tape.forward(tanh, "again", X))
    assert not any((tape.caches, tape.calls, tape.outputs, tape.deltas, tape.labels, tape._origins))
    assert tape.equations(params) == {}


def test_a_tape_that_observes_keeps_the_very_tensors_and_shares_them_with_no_other():
    tape, other = Tape(observes=True), Tape(observes=True)
    output = two_layers(tape)
    assert tape.outputs["second"] is output
    assert tape.outputs["first.a"] is tape.caches["first.a"][1] is tape.caches["second"][0]
    da, *_ = tape.backward(linear, "second", DELTA)
    tape.backward(tanh, "first.a", da)
    assert ids(tape.deltas) == ids({"second": DELTA, "first.a": da})
    assert tape.labels == {"second": "∂C/∂output", "first.a": "LI1"}
    tape.new_buffers["b"] = tape.new_memory["m"] = X
    assert not any((other.caches, other.outputs, other.calls, other.new_buffers, other.new_memory))


EXAMPLES = list(layer_examples(seed=0))


def differentiable(layer):
    fixed = getattr(layer, "not_differentiable", ())
    return [name for name in signature(layer.forward).parameters if name not in fixed]


@pytest.mark.parametrize(("layer", "arguments"), [(e[1], e[3]) for e in EXAMPLES], ids=[e[0] for e in EXAMPLES])
def test_every_layer_has_an_equation_for_each_of_its_differentiable_arguments(layer, arguments):
    tape = Tape(observes=True)
    made = tape.forward(layer, "call", *arguments)
    made = (made,) if isinstance(made, Tensor) else made[: outputs_of(layer)]
    gradients = tape.backward(layer, "call", *made)
    gradients = (gradients,) if isinstance(gradients, Tensor) else gradients
    values = dict(zip(signature(layer.forward).parameters, arguments, strict=False))
    given = [name for name in differentiable(layer) if isinstance(values.get(name), Tensor)]
    expected = [(id(values[name]), label, name) for name, label in zip(given, layer.EQUATIONS, strict=False)]
    assert [(id(argument), label, name) for argument, label, name in tape.calls["call"].given] == expected
    assert [values[name].shape for name in given] == [gradient.shape for gradient in gradients]
    assert tape.calls["call"].kind == kind(layer)


@pytest.mark.slow  # reads the source, which mutmut rewrites
def test_equations_are_the_labels_of_the_files_docstring():
    """Each of the gradient that the docstring says, beside the line that computes it, and in an example.

    So conv2d has an example with a bias, or CV3 would be a label of nothing.
    """
    file_of, in_examples, in_between = {}, set(), set()
    for name, layer, arguments in examples_of(layers, seed=0):
        module = importlib.import_module(f"{layers.__name__}.{name}")
        lines = re.findall(r"^    ([A-Z]{2}\d+)  (?:d(\w+))?(?: = d(\w+))?", module.__doc__ or "", re.MULTILINE)
        said = {label: symbols for label, *symbols in lines}
        assert {file_of.setdefault(label, name) for label in said} == {name}, "two files define one label"
        symbols = [SYMBOLS.get(a, a) for a in differentiable(layer)[: len(layer.EQUATIONS)]]
        for label, symbol in zip(layer.EQUATIONS, symbols, strict=True):
            assert symbol in said[label], name
        assert set(layer.EQUATIONS) <= labels_beside(layer.backward), name
        assert labels_beside(module) == said.keys(), name
        tape = Tape(observes=True)
        tape.forward(layer, "call", *arguments)
        in_examples |= {label for _, label, _ in tape.calls["call"].given}
        in_between |= {label for label, known in said.items() if not any(known)}  # such as what comes back to a state
    assert in_examples == file_of.keys() - in_between
    assert len(file_of) > 20


def labels_beside(code):
    """What the lines of a source say of their equations."""
    return set(re.findall(r"(?:  #|,) ([A-Z]{2}\d+)\b(?=,|$|:|  )", inspect.getsource(code), re.MULTILINE))
