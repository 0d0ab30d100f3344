"""What a diagnosis asks before it names a pattern: that all is explained, a forward of use, the terms of a graph."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from gallery.diagnosed_terms import rnn_with
from gallery.entry import normal
from gallery.recurrent import rnn_backward
from gradient_check import diagnosis
from gradient_check.diagnosis import Evidence, diagnosed
from gradient_check.diagnosis.terms import Graph
from gradient_check.report import Diagnosis, Row
from gradient_check.structure import taken
from gradient_check.subject import differentiated

NOTHING = Evidence()


def seeded(seed=0):
    """Draws one tensor after the other."""
    return partial(normal, torch.Generator().manual_seed(seed))


def diagnose(given, right, evidence=NOTHING, name="dx"):
    """Of one gradient alone, or of the one that is named."""
    given, right = (v if isinstance(v, dict) else {name: v} for v in (given, right))
    return diagnosis.diagnose(name, given, right, evidence)


def test_swapped_gradients():
    draw = seeded()
    expected = {"dq": draw(4, 5), "dk": draw(4, 5), "dv": draw(4, 5), "dW": draw(5, 4)}
    swapped = {**expected, "dq": expected["dk"], "dk": expected["dq"]}
    of_shapes = {**expected, "dq": expected["dW"], "dW": expected["dq"]}
    for given, name, other in ((swapped, "dq", "dk"), (swapped, "dk", "dq"), (of_shapes, "dq", "dW")):
        found = diagnose(given, expected, name=name)
        assert found == Diagnosis("swapped", f"this is the correct {other}, which has another")
    assert diagnose({**expected, "dq": expected["dk"]}, expected, name="dq") is None, "dk is where it belongs"


def test_the_conjugate_of_complex_numbers_that_are_pairs():
    dz = seeded()(4, 3, 2)
    forgotten = torch.view_as_real(torch.view_as_complex(dz).conj().resolve_conj())
    evidence = Evidence({"z": seeded(1)(4, 3, 2)}, complex=frozenset("z"))
    assert diagnose(forgotten, dz, evidence, "dz").kind == "conjugate"
    assert diagnose(forgotten, dz, replace(evidence, complex=frozenset()), "dz").kind == "sign", "in index 1"


class Normalized(torch.autograd.Function):
    """Backward takes the norm for a constant."""

    @staticmethod
    def forward(ctx, x):
        norm = x.pow(2).sum(-1, keepdim=True).sqrt()
        ctx.save_for_backward(norm)
        return x / norm

    @staticmethod
    def backward(ctx, dy):
        return dy / ctx.saved_tensors[0]


def test_the_forward_of_a_custom_function_is_taken_apart_without_its_backward():
    x, dy = seeded()(2, 4, 5)
    right = torch.func.vjp(lambda x: x / x.norm(dim=-1, keepdim=True), x)[1](dy)[0]
    forward = differentiated(Normalized.apply, taken(Normalized.apply, [x])[1], (0,)).forward
    found = diagnose(dy / x.norm(dim=-1, keepdim=True), right, Evidence({"x": x}, forward(x), (dy,), forward))
    assert found == Diagnosis("term", "a term is missing: the path through the sum")
    (wrong,) = torch.autograd.grad(Normalized.apply(leaf := x.requires_grad_()), leaf, dy)
    torch.testing.assert_close(wrong, dy / x.norm(dim=-1, keepdim=True), msg="its backward is there again")


def test_an_exception_of_forward_is_in_the_reason():
    x, dy = seeded()(2, 4, 5)
    evidence = Evidence({"x": x}, (x.tanh(),), (dy,), refuses)
    row = diagnosed(Row("dx", "dx", (4, 5), False, "off"), {"dx": dy.exp()}, {"dx": dy}, evidence)
    assert row.diagnosis is None
    assert row.reason == "off; in the search for a diagnosis: RuntimeError: no such kernel"


TIMES = {1: "missing", 2: "wrong sign", -1: "counted twice", 0.75: "0.25 times"}


@pytest.mark.parametrize(("c", "words"), TIMES.items())
def test_suspected_terms(c, words):
    right, term, other = seeded()(3, 4, 5)
    found = diagnose(right - c * term, right, Evidence(candidates={"the mean": other, "the spread": term}))
    assert (found.kind, words in found.text, "the spread" in found.text) == ("term", True, True)


def test_one_of_two_outputs_is_ignored():
    draw = seeded()
    x, dy, ds = draw(6, 4), draw(6, 4), draw(4)
    forward, right = lambda x: (x.tanh(), x.exp().sum(0), "cache"), dy * (1 - x.tanh() ** 2)
    found = diagnose(right, right + ds * x.exp(), Evidence({"x": x}, forward(x)[:2], (dy, ds), forward))
    assert found == Diagnosis("term", "a term is missing: the path through x in the exponential")


def test_a_pattern_has_to_explain_the_whole_error():
    """Half of this error is weight decay, the rest is below the noise, but no rounding."""
    x, right = seeded()(2, 20, 20)
    evidence, decayed = Evidence({"x": x}, noise=2e-2), right + 0.03 * x
    assert diagnose(decayed, right, evidence).kind == "weight decay"
    assert diagnose(decayed + 0.01 * seeded(5)(20, 20), right, evidence) is None


def refuses(*arguments):
    raise RuntimeError("no such kernel")


@pytest.mark.parametrize("forward", [refuses, torch.exp, lambda x: None, lambda x: x.detach().tanh(), lambda: 0])
def test_a_forward_that_is_of_no_use(forward):
    x, dy = seeded()(2, 4, 5)
    right, evidence = dy * (1 - x.tanh() ** 2), Evidence({"x": x}, (x.tanh(),), (dy,), forward)
    assert diagnose(-right, right, evidence).text == "the sign is wrong: this is −1 times the correct gradient"
    assert diagnose(seeded(5)(4, 5), right, evidence) is None
    assert diagnose(x.exp(), right, evidence) is None  # another forward's, for ones


def test_odd_input_is_unknown():
    right, other, nonsense = seeded()(3), seeded(5)(3), Evidence(candidates={"a": "no tensor"})
    pairs = [({}, right), (None, right), (right * 1j, right), (torch.zeros(0), torch.zeros(0)), (other, torch.zeros(3))]
    assert [diagnose(*pair) for pair in pairs] == [None] * 5
    assert diagnose(other, right, nonsense) is None


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_works_under_any_grad_mode_and_changes_nothing(mode):
    with mode():
        draw = seeded()
        x, W, dy = draw(4, 5), draw(5, 5), draw(4, 5)
        kept = [t.clone() for t in (x, W, dy)]
    evidence = Evidence({"x": x, "W": W}, (x + (x @ W).tanh(),), (dy,), lambda x, W: x + (x @ W).tanh())
    with mode():
        found = diagnose(dy, dy + (dy * (1 - (x @ W).tanh() ** 2)) @ W.T, evidence)  # the path through W is lost
    assert found.kind == "term"
    assert all(torch.equal(a, b) for a, b in zip(kept, (x, W, dy), strict=True))
    assert x.grad is None


def test_paths_from_a_tensor_that_is_used_several_times_add_up():
    x, dy = seeded()(2, 4, 5)
    graph = Graph(lambda x: x.sin() + x.exp() * 2 + x, {"x": x}, [dy], "x")
    nothing = lambda d_input, d_output: torch.zeros_like(d_input)  # noqa: E731
    own = [edge for edge in graph.edges if graph.leaf_below(*edge) == "x"]
    terms = [graph.value - graph.gradient({edge: nothing}) for edge in own]
    assert len(terms) == 3
    torch.testing.assert_close(sum(terms), dy * (x.cos() + 2 * x.exp() + 1))


def recurrent(x, h0, Wx, Wh):
    states = [h0]
    for step in x.unbind(1):
        states.append(torch.tanh(step @ Wx.T + states[-1] @ Wh.T))
    return torch.stack(states[1:], 1)


@pytest.mark.slow
def test_long_graphs_are_cut_in_groups():
    """Eighty steps are over five hundred nodes; the path through time is still found, within the allowed passes."""
    draw = seeded()
    arguments = {"x": draw(2, 80, 3), "h0": draw(2, 4), "Wx": draw(4, 3), "Wh": 0.3 * draw(4, 4)}
    dy, states = draw(2, 80, 4), recurrent(**arguments)
    cache = arguments["x"], [arguments["h0"], *states.unbind(1)], arguments["Wx"], arguments["Wh"]
    right, wrong = rnn_backward(dy, cache)[0], rnn_with(dy, cache, through_time=False)[0]
    found = diagnose(wrong, right, Evidence(arguments, (states,), (dy,), recurrent))
    assert found.text == "a term is missing: the path through the matrix product with Wh, in 79 places"
