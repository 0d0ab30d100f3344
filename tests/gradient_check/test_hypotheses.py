"""What a diagnosis asks before it names a pattern: that all is explained, a forward of use, the terms of a graph."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gallery.diagnosed_terms import rnn_with
from gallery.entry import normal
from gallery.recurrent import rnn_backward
from gradient_check.diagnosis import Evidence, diagnose
from gradient_check.report import Diagnosis
from gradient_check.terms import Graph, Spelled, kind


def seeded(seed: int = 0) -> Callable[..., Tensor]:
    """Draws one tensor after the other."""
    return partial(normal, torch.Generator().manual_seed(seed))


def test_swapped_gradients() -> None:
    draw = seeded()
    expected = {"dq": draw(4, 5), "dk": draw(4, 5), "dv": draw(4, 5), "dW": draw(5, 4)}
    swapped = {**expected, "dq": expected["dk"], "dk": expected["dq"]}
    assert [found and found.kind for found in (diagnose(n, swapped, expected, Evidence()) for n in ("dq", "dk"))] == [
        "swapped"
    ] * 2
    found = diagnose("dq", {**expected, "dq": expected["dW"], "dW": expected["dq"]}, expected, Evidence())
    assert found == Diagnosis("swapped", "it is the right value of dW, which has another")
    given_twice = {**expected, "dq": expected["dk"]}  # dk is where it belongs
    assert diagnose("dq", given_twice, expected, Evidence()) is None


@pytest.mark.parametrize(
    ("c", "words"), [(1, "missing"), (2, "wrong sign"), (-1, "counted twice"), (0.75, "0.25 times")]
)
def test_suspected_terms(c: float, words: str) -> None:
    draw = seeded()
    right, term, other = draw(4, 5), draw(4, 5), draw(4, 5)
    evidence = Evidence(candidates={"the mean": other, "the spread": term})
    found = diagnose("dx", {"dx": right - c * term}, {"dx": right}, evidence)
    assert found is not None
    assert found.kind == "term"
    assert words in found.text
    assert "the spread" in found.text


def test_a_parameter_that_gets_the_sum_of_the_cotangent() -> None:
    draw = seeded()
    x, dy = draw(6, 4), draw(6, 4)
    evidence = Evidence({"gamma": draw(4)}, cotangents=(dy,))
    found = diagnose("dgamma", {"dgamma": dy.sum(0)}, {"dgamma": (dy * x).sum(0)}, evidence)
    assert found == Diagnosis(
        "missing factor", "it is the sum of the cotangent: what gamma is multiplied with is missing"
    )


def test_one_of_two_outputs_ignored() -> None:
    def forward(x: Tensor) -> tuple[Tensor, Tensor, str]:
        return x.tanh(), x.exp().sum(0), "cache"

    draw = seeded()
    x, dy, ds = draw(4, 5), draw(4, 5), draw(5)
    right = dy * (1 - x.tanh() ** 2)
    evidence = Evidence({"x": x}, forward(x)[:2], (dy, ds), forward)
    found = diagnose("dx", {"dx": right}, {"dx": right + ds * x.exp()}, evidence)
    assert found == Diagnosis("term", "a term is missing: the cotangent of output 1")


def test_a_pattern_has_to_explain_the_whole_error() -> None:
    """Half of this error is weight decay, the rest is below the noise, but no rounding."""
    draw = seeded()
    x, right = draw(20, 20), draw(20, 20)
    decayed = right + 0.03 * x
    evidence = Evidence({"x": x}, noise=2e-2)
    found = diagnose("dx", {"dx": decayed}, {"dx": right}, evidence)
    assert found is not None
    assert found.kind == "weight decay"
    assert diagnose("dx", {"dx": decayed + 0.01 * seeded(5)(20, 20)}, {"dx": right}, evidence) is None


def refuses(*arguments: Tensor) -> Tensor:
    raise RuntimeError("no such kernel")


@pytest.mark.parametrize(
    "forward",
    [refuses, lambda x: x.exp(), lambda x: None, lambda x: x.detach().tanh(), lambda: 0],
    ids=["raises", "another", "nothing", "detached", "none"],
)
def test_a_forward_that_is_of_no_use(forward: Any) -> None:
    draw = seeded()
    x, dy = draw(4, 5), draw(4, 5)
    right = dy * (1 - x.tanh() ** 2)
    evidence = Evidence({"x": x}, (x.tanh(),), (dy,), forward)
    assert diagnose("dx", {"dx": -right}, {"dx": right}, evidence) == Diagnosis(
        "sign", "the sign is wrong: it is −1 times the right value"
    )
    assert diagnose("dx", {"dx": seeded(5)(4, 5)}, {"dx": right}, evidence) is None
    assert diagnose("dx", {"dx": x.exp()}, {"dx": right}, evidence) is None  # another forward's, for ones


def test_odd_input_is_unknown() -> None:
    right = seeded()(3)
    assert diagnose("dx", {}, {"dx": right}, Evidence()) is None
    nonsense: Any = {"a": "no tensor"}
    assert diagnose("dx", {"dx": seeded(5)(3)}, {"dx": right}, Evidence(candidates=nonsense)) is None
    assert diagnose("dx", {"dx": None}, {"dx": right}, Evidence()) is None
    assert diagnose("dx", {"dx": right * 1j}, {"dx": right}, Evidence()) is None
    assert diagnose("dx", {"dx": torch.zeros(0)}, {"dx": torch.zeros(0)}, Evidence()) is None
    assert diagnose("dx", {"dx": seeded(5)(3)}, {"dx": torch.zeros(3)}, Evidence()) is None


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_works_under_any_grad_mode_and_changes_nothing(mode: Any) -> None:
    with mode():
        draw = seeded()
        x, W, dy = draw(4, 5), draw(5, 5), draw(4, 5)
        kept = [t.clone() for t in (x, W, dy)]
        wrong = dy  # the path through W is lost
    evidence = Evidence({"x": x, "W": W}, (x + (x @ W).tanh(),), (dy,), lambda x, W: x + (x @ W).tanh())
    with mode():
        right = dy + (dy * (1 - (x @ W).tanh() ** 2)) @ W.T
        found = diagnose("dx", {"dx": wrong}, {"dx": right}, evidence)
    assert found is not None
    assert found.kind == "term"
    assert all(torch.equal(a, b) for a, b in zip(kept, (x, W, dy), strict=True))
    assert x.grad is None


def test_paths_from_a_tensor_that_is_used_several_times_add_up() -> None:
    draw = seeded()
    x, dy = draw(4, 5), draw(4, 5)
    graph = Graph(lambda x: x.sin() + x.exp() * 2 + x, {"x": x}, [dy], "x")
    terms = [graph.value - graph.without([edge]) for edge in graph.edges if graph.leaf_below(*edge) == "x"]
    assert len(terms) == 3
    torch.testing.assert_close(sum(terms), dy * (x.cos() + 2 * x.exp() + 1))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.softmax(-1),
        lambda x: F.log_softmax(x, 0),
        lambda x: F.layer_norm(x, (5,)),
        lambda x: F.rms_norm(x, (5,)),
        lambda x: F.batch_norm(x, None, None, training=True),
        lambda x: F.scaled_dot_product_attention(x, x + 1, 2 * x, is_causal=True),
    ],
    ids=["softmax", "log_softmax", "layer_norm", "rms_norm", "batch_norm", "attention"],
)
def test_spelled_functions_have_the_same_value_and_gradient(function: Callable[[Tensor], Tensor]) -> None:
    x = seeded()(4, 5).requires_grad_()
    with Spelled():
        spelled = function(x)
    dy = torch.randn(4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(spelled, function(x))
    assert kind(spelled.grad_fn) in ("Add", "Mul", "Mm")
    torch.testing.assert_close(*(torch.autograd.grad(y, x, dy)[0] for y in (spelled, function(x))))


def recurrent(x: Tensor, h0: Tensor, Wx: Tensor, Wh: Tensor) -> Tensor:
    h, states = h0, []
    for step in x.unbind(1):
        h = torch.tanh(step @ Wx.T + h @ Wh.T)
        states.append(h)
    return torch.stack(states, 1)


@pytest.mark.slow
def test_long_graphs_are_cut_in_groups() -> None:
    """Eighty steps are over five hundred nodes; the path through time is still found, within the allowed passes."""
    draw = seeded()
    arguments = {"x": draw(2, 80, 3), "h0": draw(2, 4), "Wx": draw(4, 3), "Wh": 0.3 * draw(4, 4)}
    dy, states = draw(2, 80, 4), recurrent(*arguments.values())
    cache = arguments["x"], [arguments["h0"], *states.unbind(1)], arguments["Wx"], arguments["Wh"]
    right, wrong = rnn_backward(dy, cache)[0], rnn_with(dy, cache, through_time=False)[0]
    found = diagnose("dx", {"dx": wrong}, {"dx": right}, Evidence(arguments, (states,), (dy,), recurrent))
    assert found is not None
    assert found.text == "a term is missing: the path through the matrix product with Wh, in 79 places"
