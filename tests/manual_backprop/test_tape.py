"""What a tape promises: caches once, names once, and the label of every δ and of every parameter's gradient."""

import importlib
import inspect
import re
from inspect import signature
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from gradient_check import check_backward
from manual_backprop import layers
from manual_backprop.layers import batch_norm, conv2d, dropout, linear, prelu
from manual_backprop.layers.activations import ACTIVATIONS
from manual_backprop.losses import Quadratic
from manual_backprop.models.mlp import MLP
from manual_backprop.optimizers import SGD
from manual_backprop.tape import Tape, kind
from tests.support.cnn_problems import CNNS
from tests.support.problems import random_batches, rates
from training.data import Split
from training.learners.comparison import SYMBOLS, describe
from training.learners.manual import ManualLearner
from training.learners.verification import examples_of, layer_examples

tanh = ACTIVATIONS["tanh"]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def affine(x: Tensor, W: Tensor, b: Tensor) -> Tensor:
    return x @ W.T + b


X, W1, B1, W2, B2 = normal(7, 3), normal(5, 3, seed=1), normal(5, seed=2), normal(5, 5, seed=3), normal(5, seed=4)


def two_layers(tape: Tape) -> Tensor:
    z = tape.forward(linear, "first", X, W1, B1)
    return tape.forward(linear, "second", tape.forward(tanh, "first.a", z), W2, B2)


# Two outputs, y = a + b and h = a b, and behind the cache what else the forward pass has to say.
TWO = SimpleNamespace(
    name="two",
    OUTPUTS=("y", "h"),
    EQUATIONS=("TW1", "TW2"),
    forward=lambda a, b: (a + b, a * b, (a, b)),
    backward=lambda dy, dh, cache: (dy + dh * cache[1], dy + dh * cache[0]),
)
TALKATIVE = SimpleNamespace(
    name="talkative",
    EQUATIONS=("TA1",),
    forward=lambda x: (2 * x, "cache", x.sum(), len(x)),
    backward=lambda dy, cache: 2 * dy,
)
TABLE = SimpleNamespace(
    name="table",
    EQUATIONS=("TB1",),
    not_differentiable=("ids",),
    forward=lambda ids, E: (E[ids], (ids, E.shape)),
    backward=lambda dy, cache: torch.zeros(cache[1], dtype=dy.dtype).index_add_(0, cache[0], dy),
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


# Caches


@pytest.mark.parametrize("observes", [False, True], ids=["unobserved", "observed"])
def test_a_cache_is_handed_out_once_and_is_gone(observes: bool) -> None:
    tape = Tape(observes=observes)
    assert torch.equal(two_layers(tape), affine(affine(X, W1, B1).tanh(), W2, B2))
    assert list(tape.caches) == ["first", "first.a", "second"]
    delta = normal(7, 5, seed=5)
    da, dW, db = tape.backward(linear, "second", delta)
    assert list(tape.caches) == ["first", "first.a"]
    assert all(torch.equal(*pair) for pair in ((da, delta @ W2), (dW, delta.T @ affine(X, W1, B1).tanh())))
    assert torch.equal(db, delta.sum(0))
    dz = tape.backward(tanh, "first.a", da)
    assert list(tape.caches) == ["first"]
    x, W = tape.take("first")
    assert x is X
    assert W is W1
    assert tape.caches == {}
    assert torch.equal(dz, da * (1 - affine(X, W1, B1).tanh().square()))


NO_CACHE = r"^the tape has no cache of second: a backward pass needs a forward pass that records$"


@pytest.mark.parametrize("observes", [False, True], ids=["unobserved", "observed"])
def test_a_second_backward_needs_a_second_forward(observes: bool) -> None:
    tape, delta = Tape(observes=observes), normal(7, 5)
    two_layers(tape)
    tape.backward(linear, "second", delta)
    for again in (lambda: tape.backward(linear, "second", delta), lambda: tape.take("second")):
        with pytest.raises(ValueError, match=NO_CACHE):
            again()


def test_a_backward_behind_a_forward_that_did_not_record_is_refused() -> None:
    tape = Tape(records=False)
    output = two_layers(tape)
    tape.keep("linear", "third", output, (output,))
    assert tape.caches == {}
    assert torch.equal(output, two_layers(Tape()))
    with pytest.raises(ValueError, match=NO_CACHE):
        tape.backward(linear, "second", normal(7, 5))
    model = MLP((3, 2), ("tanh",))
    params = {name: torch.ones(shape) for name, shape in model.shapes.items()}
    output = model.forward(params, torch.ones(4, 3), tape)
    with pytest.raises(ValueError, match="the tape has no cache of layer1: "):
        model.backward(params, output, {}, tape)


@pytest.mark.parametrize("observes", [False, True], ids=["unobserved", "observed"])
def test_a_name_used_twice_is_refused(observes: bool) -> None:
    tape = Tape(observes=observes)
    two_layers(tape)
    message = r"^the tape holds a cache of second already: give each call a name of its own$"
    with pytest.raises(ValueError, match=message):
        tape.forward(linear, "second", X, W1, B1)
    with pytest.raises(ValueError, match=message):
        tape.keep("linear", "second", X, (X,))
    tape.take("second")
    tape.forward(linear, "second", X, W1, B1)  # a second pass over the same tape


# What comes back


@pytest.mark.parametrize("observes", [False, True], ids=["unobserved", "observed"])
def test_outputs_come_back_with_what_stands_behind_the_cache(observes: bool) -> None:
    tape = Tape(observes=observes)
    y, total, count = tape.forward(TALKATIVE, "talk", X)
    assert torch.equal(y, 2 * X)
    assert (total, count) == (X.sum(), 7)
    assert tape.caches == {"talk": "cache"}
    assert list(tape.outputs) == ["talk"] * observes
    gamma, beta, mean, var = (normal(3, seed=s).abs() for s in range(4))
    made = tape.forward(batch_norm, "norm", X, gamma, beta, mean, var, momentum=0.3)
    y, cache, new_mean, new_var = batch_norm.forward(X, gamma, beta, mean, var, 0.3)
    assert all(torch.equal(*pair) for pair in zip(made, (y, new_mean, new_var), strict=True))
    assert all(torch.equal(*pair) for pair in zip(tape.caches["norm"], cache, strict=True))


def test_a_layer_of_several_outputs_has_a_name_and_a_delta_for_each() -> None:
    a, b, dy, dh = (normal(4, 3, seed=seed) for seed in range(4))
    unobserved, tape = Tape(), Tape(observes=True)
    for each in (unobserved, tape):
        y, h = each.forward(TWO, "two", a, b)
        assert torch.equal(y, a + b)
        assert torch.equal(h, a * b)
        assert list(each.caches) == ["two"]
        da, db = each.backward(TWO, "two", dy, dh)
        assert torch.equal(da, dy + dh * b)
        assert torch.equal(db, dy + dh * a)
        assert each.caches == {}
    assert list(tape.calls) == ["two"]
    assert tape.outputs.keys() == tape.deltas.keys() == {"two.y", "two.h"}
    assert tape.deltas["two.y"] is dy
    assert tape.deltas["two.h"] is dh
    before = Tape(observes=True)
    y, h = before.forward(TWO, "two", a, b)
    da, db = before.backward(TWO, "two", dy, dh)
    for gradient, label in ((db, "TW2"), (da, "TW1")):
        before.see("made", gradient)
        assert before.labels["made"] == label


def test_one_gradient_may_be_a_single_number() -> None:
    tape, z = Tape(observes=True), torch.tensor(0.3)
    tape.forward(tanh, "a", z)
    tape.see("z", tape.backward(tanh, "a", z))
    assert tape.labels["z"] == "AC1"


def test_every_output_that_a_layer_says_it_has_is_there() -> None:
    mute = SimpleNamespace(name="mute", OUTPUTS=("y", "h", "c"), EQUATIONS=("MU1",), forward=lambda x: (x, None))
    with pytest.raises(ValueError, match=r"zip\(\)"):
        Tape(records=False, observes=True).forward(mute, "mute", X)


def test_every_output_wants_its_delta() -> None:
    tape = Tape(observes=True)
    tape.forward(TWO, "two", X, X)
    with pytest.raises(ValueError, match=r"zip\(\)"):
        tape.backward(TWO, "two", X)


def test_options_reach_both_ways() -> None:
    x, W = normal(2, 3, 6, 5), normal(4, 3, 3, 3)
    for observes in (False, True):
        tape = Tape(observes=observes)
        z = tape.forward(conv2d, "conv", x, W, padding=1)
        assert z.shape == (2, 4, 6, 5)
        dx, dW = tape.backward(conv2d, "conv", z, need_dx=False)
        assert dx is None
        assert dW.shape == W.shape


def test_a_tape_that_does_not_observe_keeps_nothing() -> None:
    model = MLP((3, 5, 4), ("tanh", "relu"))
    params = {name: torch.ones(shape) for name, shape in model.shapes.items()}
    tape = Tape(training=True, need_dx=True)
    model.backward(params, model.forward(params, torch.ones(2, 3), tape), {}, tape)
    tape.backward(tanh, "again", tape.add("XX1", X, X) + 0 * tape.forward(tanh, "again", X))
    assert not any((tape.caches, tape.calls, tape.outputs, tape.deltas, tape.labels, tape._origins))
    assert tape.equations(params) == {}


def test_a_tape_that_observes_keeps_the_very_tensors() -> None:
    tape, delta = Tape(observes=True), normal(7, 5)
    output = two_layers(tape)
    assert tape.outputs["second"] is output
    assert tape.outputs["first.a"] is tape.caches["first.a"][1] is tape.caches["second"][0]
    da, *_ = tape.backward(linear, "second", delta)
    tape.backward(tanh, "first.a", da)
    assert tape.deltas["second"] is delta
    assert tape.deltas["first.a"] is da


# Labels of δs


def labels_behind(*steps: Any) -> dict[str, str]:
    """Of a tape on which `second` was gone through, and then what the steps make of its da."""
    tape = Tape(observes=True)
    two_layers(tape)
    da, *_ = tape.backward(linear, "second", normal(7, 5))
    for step in steps:
        da = step(tape, da)
    tape.backward(tanh, "first.a", da)
    return tape.labels


def test_a_delta_has_the_label_of_the_backward_that_returned_it() -> None:
    labels = labels_behind()
    assert labels == {"second": "∂C/∂output", "first.a": "LI1"}
    tape = Tape(observes=True)
    tape.forward(prelu, "prelu", X, torch.tensor([0.5], dtype=torch.float64))
    dz, dalpha = tape.backward(prelu, "prelu", X)
    tape.see("z", dz)
    tape.see("alpha", dalpha)
    assert tape.labels == {"prelu": "∂C/∂output", "z": "PR1", "alpha": "PR2"}


@pytest.mark.parametrize(
    "view",
    [
        lambda da: da.view(7, 1, 5).squeeze(1),
        lambda da: da.T.T,
        lambda da: da.expand(2, 7, 5)[1],
        lambda da: da.detach(),
    ],
    ids=["reshaped", "transposed", "expanded", "detached"],
)
def test_a_label_stays_through_views(view: Any) -> None:
    assert labels_behind(lambda tape, da: view(da))["first.a"] == "LI1"


def test_a_part_of_a_gradient_has_the_wholes_label() -> None:
    """As where one matrix product makes q, k and v."""
    tape = Tape(observes=True)
    two_layers(tape)
    da, *_ = tape.backward(linear, "second", normal(7, 5))
    for name, part in zip(("q", "k"), da.split([2, 3], dim=1), strict=True):
        tape.see(name, part)
    assert (tape.labels["q"], tape.labels["k"]) == ("LI1", "LI1")


def test_two_gradients_in_one_memory_have_each_its_label() -> None:
    """Halves of one matrix product; views of them, and what begins elsewhere in them, too."""
    tape = Tape(observes=True)
    tape.forward(HALVES, "halves", X, X)
    da, db = tape.backward(HALVES, "halves", normal(14, 3))
    for name, delta in (("a", da), ("b", db), ("view of b", db.flatten()), ("a without its first row", da[1:])):
        tape.see(name, delta)
    assert tape.labels == {
        "halves": "∂C/∂output",
        "a": "HA1",
        "b": "HA2",
        "view of b": "HA2",
        "a without its first row": "HA1",
    }


def test_a_gradient_inside_of_a_larger_memory_has_its_label_wherever_a_view_begins() -> None:
    """As dx inside of its padding."""
    inside = SimpleNamespace(
        name="padded",
        EQUATIONS=("PD1",),
        forward=lambda x: (torch.constant_pad_nd(x, (1, 1, 1, 1)), None),
        backward=lambda dy, cache: (2 * dy)[1:-1, 1:-1],
    )
    tape = Tape(observes=True)
    tape.forward(inside, "padded", X)
    dx = tape.backward(inside, "padded", normal(9, 5))
    tape.see("part", dx[2:])
    assert tape.labels["part"] == "PD1"


def test_a_delta_that_goes_two_ways_has_its_label_on_both() -> None:
    tape, d_output = Tape(observes=True), normal(7, 5)
    tape.see("one", d_output)
    tape.see("other", d_output)
    assert tape.labels == {"one": "∂C/∂output", "other": "∂C/∂output"}
    made = 2 * d_output
    tape.see("made", made, "BP1")
    tape.see("handed on", made)
    assert (tape.labels["made"], tape.labels["handed on"]) == ("BP1", "BP1")


def test_a_layer_that_returns_a_view_gives_it_its_own_label() -> None:
    tape = Tape(observes=True)
    tape.forward(VIEW, "view", normal(2, 3, 4))
    dx = tape.backward(VIEW, "view", normal(2, 12))
    tape.see("before", dx)
    assert tape.labels == {"view": "∂C/∂output", "before": "VI1"}


def test_what_nobody_named_has_no_label() -> None:
    """A product of the model's own, which is not the cost's gradient either."""
    labels = labels_behind(lambda tape, da: 2 * da)
    assert labels == {"second": "∂C/∂output", "first.a": ""}


def test_a_sum_has_a_label_of_its_own() -> None:
    def through_a_sum(tape: Tape, da: Tensor) -> Tensor:
        total = tape.add("RS1", da, X @ W1.T, 2 * da)
        torch.testing.assert_close(total, 3 * da + X @ W1.T)
        return total

    assert labels_behind(through_a_sum)["first.a"] == "RS1"
    assert torch.equal(Tape().add("RS1", X, X), 2 * X)
    before = X.clone()
    Tape(observes=True).add("RS1", X, X)
    assert torch.equal(X, before)


def test_the_summands_keep_their_labels() -> None:
    tape = Tape(observes=True)
    two_layers(tape)
    da, *_ = tape.backward(linear, "second", normal(7, 5))
    tape.add("RS1", da, da)
    tape.see("skip", da)
    assert tape.labels["skip"] == "LI1"


def test_memory_that_a_label_lies_in_is_not_used_again() -> None:
    """A gradient that nobody keeps: another tensor in its place would come by its label."""
    tape = Tape(observes=True)
    tape.see("output", normal(7, 5))
    for i in range(20):
        tape.forward(tanh, f"a{i}", normal(7, 5))
        tape.backward(tanh, f"a{i}", normal(7, 5))
        tape.see(f"made{i}", normal(7, 5) + i)
    assert {tape.labels[f"made{i}"] for i in range(20)} == {""}


def test_a_delta_that_the_model_makes_has_the_label_that_it_gives() -> None:
    """Even where it forgot to make one, and hands on what came in: the equation that it names is the wrong one."""
    tape, d_output = Tape(observes=True), normal(7, 5)
    tape.see("layer2.a", d_output)
    tape.see("layer2", d_output, "BP1")
    tape.see("layer1.a", tape.add("BP2", d_output @ W2))
    assert tape.labels == {"layer2.a": "∂C/∂output", "layer2": "BP1", "layer1.a": "BP2"}


# Labels of parameters


def test_a_parameter_has_the_label_of_its_arguments_place() -> None:
    p = {"W": W1, "b": B1, "unused": W2}
    expected = {"W": ("LI2", "W"), "b": ("LI3", "b")}
    given: list[tuple[tuple[Tensor, ...], dict[str, Tensor]]] = [
        ((X, W1, B1), {}),
        ((X, W1), {"b": B1}),
        ((X,), {"b": B1, "W": W1}),
        ((), {"b": B1, "x": X, "W": W1}),
    ]
    for arguments, options in given:
        tape = Tape(observes=True)
        tape.forward(linear, "linear", *arguments, **options)
        assert tape.equations(p) == expected
        assert tape.equations({"x": X}) == {"x": ("LI1", "x")}


def test_what_is_not_differentiable_or_not_there_takes_no_label() -> None:
    gamma, beta, mean, var = (normal(3, seed=s).abs() for s in range(4))
    p = {"gamma": gamma, "beta": beta, "mean": mean, "var": var}
    expected = {"gamma": ("BN2", "gamma"), "beta": ("BN1", "beta")}
    for layer in (batch_norm, batch_norm.evaluation):
        tape = Tape(observes=True)
        tape.forward(layer, "norm", X, gamma, beta, mean, var)
        assert tape.equations(p) == expected
        assert tape.calls["norm"].kind == "batch_norm"
    tape, kernel, mask = Tape(observes=True), normal(2, 3, 2, 2), torch.ones(7, 3)
    tape.forward(conv2d, "conv", normal(2, 3, 4, 4), kernel, None, 2)
    tape.forward(dropout, "dropout", X, mask, 0.5)
    assert tape.equations({"kernel": kernel, "mask": mask}) == {"kernel": ("CV2", "W")}
    assert [len(call.given) for call in tape.calls.values()] == [2, 1]


def test_what_is_not_differentiable_may_stand_before_what_is() -> None:
    tape, ids = Tape(observes=True), torch.tensor([1, 0, 1])
    tape.forward(TABLE, "table", ids, W1)
    assert tape.equations({"E": W1, "ids": ids}) == {"E": ("TB1", "E")}


def test_a_parameter_of_calls_of_two_kinds_has_both_labels() -> None:
    shared = normal(3, 3)
    tape = Tape(observes=True)
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


def test_only_the_parameter_itself_is_known() -> None:
    tape = Tape(observes=True)
    tape.forward(linear, "linear", X, W1.clone(), B1)
    assert tape.equations({"W": W1, "b": B1}) == {"b": ("LI3", "b")}


# Noise, buffers and memory


def test_noise_without_a_source_is_one_sentence() -> None:
    model = MLP((3, 5, 4), ("tanh", "relu"), dropout=0.5)
    params = {name: torch.ones(shape) for name, shape in model.shapes.items()}
    message = r"^layer1\.dropout needs noise of the shape \(2, 5\): give the tape `noise`, or training=False$"
    with pytest.raises(ValueError, match=message):
        model.forward(params, torch.ones(2, 3), Tape(training=True))
    model.forward(params, torch.ones(2, 3), Tape())


def test_noise_is_asked_for_by_the_calls_name() -> None:
    asked: list[Any] = []

    def noise(call: str, shape: tuple[int, ...], keep: float) -> Tensor:
        asked.append((call, shape, keep))
        return torch.ones(shape, dtype=torch.float64)

    problem, _ = CNNS["two blocks"].dropped(0.25)
    problem.by_hand(noise=noise)
    assert asked == [("dropout", (5, 4), 0.75)]


class Carries:
    """y = W x + h, and h becomes the mean of y: `h` is a memory, and `seen` a buffer that counts."""

    shapes: ClassVar = {"W": (3, 3)}

    def buffers(self) -> dict[str, Tensor]:
        return {"seen": torch.tensor(0)}

    def forward(self, p: Any, x: Tensor, tape: Tape) -> Tensor:
        h = tape.memory.get("h", torch.zeros(3, dtype=x.dtype))
        y = tape.forward(linear, "y", x, p["W"], h)
        tape.new_memory["h"] = y.mean(dim=0)
        if tape.training:
            tape.new_buffers["seen"] = tape.buffers["seen"] + 1
        return y

    def backward(self, p: Any, d_output: Tensor, g: Any, tape: Tape) -> None:
        _, g["W"], _ = tape.backward(linear, "y", d_output)


class Goes(Split):
    carries = True


@pytest.mark.parametrize("split", [Split, Goes], ids=["by itself", "on from the batch before"])
def test_only_a_step_moves_buffers_and_memory(split: type[Split]) -> None:
    data = split(normal(20, 3), torch.arange(20) % 3)
    learner = ManualLearner(Carries(), Quadratic(), SGD(), data, dtype=torch.float64)  # type: ignore[arg-type]
    learner.params["W"].copy_(normal(3, 3, seed=1))
    x, y = data.batch(torch.arange(5), torch.float64)
    for step in (0, 1):
        before = learner.state_dict()
        results = [learner.backpropagate(x, y) for _ in range(2)]
        learner.evaluate(x, y)
        learner.activations(x)
        after = learner.state_dict()
        assert after["model"]["seen"].item() == before["model"]["seen"].item() == step
        assert after["memory"].keys() == before["memory"].keys() == ({"h"} if step and split is Goes else set())
        assert torch.equal(results[0].memory["h"], results[1].memory["h"])
        assert results[0].buffers["seen"].item() == step + 1
        learner.advance(random_batches(1, 5, 20), rates(1, 0.1))
    assert learner.buffers["seen"].item() == 2
    learner.forget()
    assert learner.state_dict()["memory"] == {}


def test_a_pass_writes_to_nothing_but_what_is_new() -> None:
    model, h, seen = Carries(), torch.ones(3, dtype=torch.float64), torch.tensor(4)
    buffers, memory = {"seen": seen}, {"h": h}
    tape = Tape(training=True, buffers=buffers, memory=memory)
    y = model.forward({"W": torch.eye(3, dtype=torch.float64)}, X, tape)
    assert torch.equal(y, X + 1)
    assert tape.buffers is buffers
    assert tape.memory is memory
    assert (buffers, memory) == ({"seen": seen}, {"h": h})
    assert seen.item() == 4
    assert torch.equal(h, torch.ones(3, dtype=torch.float64))
    assert tape.new_buffers["seen"].item() == 5
    assert torch.equal(tape.new_memory["h"], y.mean(dim=0))


def test_no_two_tapes_share_what_they_hold() -> None:
    first, second = Tape(observes=True), Tape(observes=True)
    two_layers(first)
    first.new_buffers["b"] = first.new_memory["m"] = X
    assert not any((second.caches, second.outputs, second.calls, second.new_buffers, second.new_memory))


# Every layer


def not_differentiable(layer: Any) -> tuple[str, ...]:
    return getattr(layer, "not_differentiable", ())


def test_a_layers_kind_is_its_modules_name_or_its_own() -> None:
    assert [kind(layer) for layer in (linear, tanh, batch_norm.evaluation)] == ["linear", "tanh", "batch_norm"]


EXAMPLES = list(layer_examples(seed=0))


@pytest.mark.parametrize(("layer", "arguments"), [(e[1], e[3]) for e in EXAMPLES], ids=[e[0] for e in EXAMPLES])
def test_every_layer_has_an_equation_for_each_of_its_differentiable_arguments(layer: Any, arguments: Any) -> None:
    tape = Tape(observes=True)
    made = tape.forward(layer, "call", *arguments)
    output = made if isinstance(made, Tensor) else made[0]
    gradients = tape.backward(layer, "call", output)
    gradients = (gradients,) if isinstance(gradients, Tensor) else gradients
    given = tape.calls["call"].given
    assert [label for _, label, _ in given] == list(layer.EQUATIONS)[: len(given)]
    assert [argument.shape for argument, _, _ in given] == [gradient.shape for gradient in gradients]
    fixed = not_differentiable(layer)
    report = check_backward(layer.forward, layer.backward, arguments, not_differentiable=fixed, cases=[])
    checked = {row.name.removeprefix("d") for row in report.rows if row.oracle == "autograd"}
    assert {name for _, _, name in given} == checked
    assert tape.calls["call"].kind == kind(layer)


def test_every_equation_has_an_example() -> None:
    """conv2d has one with a bias, or CV3 would be a label of nothing."""
    used: dict[str, set[str]] = {}
    for _, layer, _, arguments in EXAMPLES:
        tape = Tape(observes=True)
        tape.forward(layer, "call", *arguments)
        used.setdefault(kind(layer), set()).update(label for _, label, _ in tape.calls["call"].given)
    assert used == {kind(layer): set(layer.EQUATIONS) for _, layer, _, _ in EXAMPLES}


def labels_beside(code: Any) -> set[str]:
    """What the lines of a source say of their equations."""
    return set(re.findall(r"  # ([A-Z]{2}\d)\b", inspect.getsource(code)))


@pytest.mark.slow  # reads the source, which mutmut rewrites
def test_equations_are_the_labels_of_the_files_docstring() -> None:
    """Each of the gradient that the docstring says, and beside the line of the backward pass that computes it."""
    layers_of: dict[str, list[Any]] = {"batch_norm": [batch_norm.evaluation]}
    for name, layer, _ in examples_of(layers, seed=0):
        layers_of.setdefault(name, []).append(layer)
    defined: dict[str, str] = {}
    for name, of_this_file in layers_of.items():
        module = importlib.import_module(f"{layers.__name__}.{name}")
        said = dict(re.findall(r"^    ([A-Z]{2}\d)  d(\w+)", module.__doc__ or "", re.MULTILINE))
        assert not said.keys() & defined.keys(), "two files define one label"
        defined |= said
        for layer in of_this_file:
            arguments = [a for a in signature(layer.forward).parameters if a not in not_differentiable(layer)]
            symbols = [SYMBOLS.get(a, a) for a in arguments[: len(layer.EQUATIONS)]]
            assert [said[label] for label in layer.EQUATIONS] == symbols, name
            assert set(layer.EQUATIONS) <= labels_beside(layer.backward), name
        assert labels_beside(module) == said.keys(), name
    assert len(defined) > 20


def test_an_error_message_names_the_equation() -> None:
    problem = CNNS["two blocks"]
    learner_tape = Tape(training=True, buffers=problem.buffers, observes=True)
    params = problem.params
    output = problem.model.forward(params, problem.data[0], learner_tape)
    problem.model.backward(params, output, {}, learner_tape)
    result: Any = SimpleNamespace(labels=learner_tape.labels, equations=learner_tape.equations(params))
    assert {name: describe(name, result) for name in MESSAGES} == MESSAGES


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
