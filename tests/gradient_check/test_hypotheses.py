"""What a diagnosis asks before it names a pattern: that all is explained, a forward of use, the terms of a graph."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from gallery.diagnosed_terms import rnn_with
from gallery.entry import normal
from gallery.recurrent import rnn_backward
from gradient_check import check_backward, diagnosis
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


def paired(function):
    """The same function of complex numbers as pairs, and its outputs as such."""
    return lambda *pairs: torch.view_as_real(function(*map(torch.view_as_complex, pairs)))


CONJUGATES = {
    "b": (torch.mul, lambda d, a, b: d * b, "the conjugate of b was forgotten"),
    "a": (lambda a, b: a.exp() * 1j, lambda d, a, b: d * (a.exp() * 1j).conj().conj(), "this is Jᵀ dy where Jᴴ dy is"),
    "both": (lambda a, b: a * a * b, lambda d, a, b: 2 * d * a * b, "this is Jᵀ dy where Jᴴ dy is correct"),
}


@pytest.mark.parametrize("name", CONJUGATES)
def test_a_forgotten_conjugate_of_what_is_multiplied_by(name):
    function, wrong, words = CONJUGATES[name]
    a, b, dy = seeded()(3, 5, 4, 2)
    right = torch.func.vjp(paired(function), a, b)[1](dy)[0]
    given = paired(wrong)(dy, a, b)
    evidence = Evidence({"a": a, "b": b}, (dy,), (dy,), paired(function), complex={"a", "b", "the output"})
    found = diagnose(given, right, evidence, "da")
    assert (found.kind, words in found.text) == ("conjugate", True), found


def test_real_and_imaginary_part_are_no_dimension():
    z, dz = seeded()(2, 5, 3, 2)
    dz = dz / dz.norm()
    texts = {
        "this is ½ times the correct gradient": dz / 2,
        "this is the transpose of the correct gradient": dz.mT.contiguous().mT.movedim(0, 1),
        "in the imaginary part this is zero; the rest is correct": dz * torch.tensor([1.0, 0.0]),
        "its shape is (3,), not (5, 3): it was also summed over dimension 0": dz.sum(0),
        "1 of 15 elements are not finite, the first is NaN at [0, 1]": dz.where(dz != dz[0, 1, 1], torch.nan),
        "wrong only in column 1": dz.index_put((torch.tensor([0, 1, 2, 3, 4]), torch.tensor(1)), seeded(1)(5, 2)),
    }
    for text, given in texts.items():
        assert diagnose(given, dz, Evidence({"z": z}, complex={"z"}), "dz").text == text


def test_a_size_is_named_where_only_one_fits():
    W, right = seeded()(2, 7, 7)
    for x, words in ((seeded(1)(5, 7), " (5 = dimension 0 of x): mean against sum"), (seeded(1)(5, 5), "")):
        found = diagnose(right / 5, right, Evidence({"x": x, "W": W}), "dW")
        assert found.text == f"this is 1/5 times the correct gradient{words}"


def test_what_has_a_gradient_of_its_own_is_no_mask():
    x, dy, dg = seeded()(3, 6, 5)
    g = (torch.arange(5) > 1).double()
    for own, kind in ((dg, "missing factor"), (None, "mask ignored")):
        evidence = Evidence({"x": x, "g": g}, (x * g,), (dy,), torch.mul)
        assert diagnose({"dx": dy, "dg": own}, {"dx": dy * g}, evidence).kind == kind


def test_one_of_the_two_factors_of_a_derivative_was_forgotten():
    x, dy = seeded()(2, 4, 5)
    y = x.sigmoid()
    assert diagnose(dy * y, dy * y * (1 - y), Evidence({}, (y,), (dy,))).text == "1 − y was not multiplied in"


def test_a_factor_that_is_zero_was_not_left_out_where_the_gradient_is_zero_too():
    """Of all zeros of x, half of the gradients are zero without it."""
    x, right = seeded()(2, 8, 5)
    x[::2] = 0
    given = (right := right * x) / x.where(x != 0, 1.0)
    given[0] = dy = seeded(1)(5)
    given[4] = dy
    assert diagnose(given, right, Evidence({"x": x})) is None


def test_a_forward_for_one_precision_is_fed_other_values_in_it():
    x, mask, dy = seeded()(3, 6, 5)
    x, mask, dy = x.float(), (mask > 0).float().cumsum(0).clamp(max=1), dy.float()

    def forward(x, mask):
        assert x.dtype == torch.float32
        return (x * (mask + 0.5)).sin()

    slope = torch.func.vjp(forward, x, mask)[1](dy)[0]
    wrong = torch.func.vjp(forward, x, torch.ones_like(mask))[1](dy)[0]
    found = diagnose(wrong, slope, Evidence({"x": x, "mask": mask}, (), (dy,), forward, noise=1e-5))
    assert found == Diagnosis("mask ignored", "the mask mask was ignored")


def test_words_are_of_all_that_is_cut_and_of_one_matrix():
    x, dy = seeded()(2, 4, 5)
    forward = lambda x: x.pow(2).mean() * x + (x.exp().mean() * x).sin()  # noqa: E731
    graph = Graph(forward, {"x": x}, [dy], "x")
    means = [(n, i) for n, i in graph.edges if n.name().startswith("Mean")]
    assert graph._words(means)[1] == "the mean, in 2 places"
    W, b, dz = seeded(1)(3, 5, 5)
    evidence = Evidence({"x": x, "W": W, "b": b[0]}, (), (dz[:4],), lambda x, W, b: torch.addmm(b, x, W).sin())
    y = torch.addmm(b[0], x, W)
    found = diagnose((dz[:4] * y.cos()) @ W, (dz[:4] * y.cos()) @ W.T, evidence)
    assert found.text == "in the gradient of a matrix product W is transposed"


def test_the_forward_on_trial_is_taken_apart_where_the_reference_is_one_step():
    x, dy = seeded()(2, 4, 5)
    apart = lambda x: x - x.mean(-1, keepdim=True)  # noqa: E731
    evidence = Evidence({"x": x}, (), (dy,), lambda x: torch.linalg.multi_dot([x, torch.eye(5).double() - 0.2]), apart)
    assert diagnose(dy, apart(dy), evidence).text == "a term is missing: the path through the mean"
    assert diagnose(dy.sin(), apart(dy), replace(evidence, own=refuses)) is None


def test_a_mask_that_is_too_wide_and_not_one_place_further():
    for masked, passed, told in ((torch.ones(8, 9).tril(), torch.ones(8, 9).tril(1), True), (torch.eye(3), 1, False)):
        found = diagnose(masked.double() * 0 + passed, masked.double())
        assert (found is not None and "this is not zero, as it should be; the rest is correct" in found.text) == told
    upto, means = torch.arange(7) < torch.tensor([3, 7, 1, 5, 2])[:, None], seeded()(5, 1)
    assert diagnose(means * upto.roll(1, 1).index_fill(1, torch.tensor(0), True), means * upto) is None


@pytest.mark.parametrize("kept", [512, 500])
def test_all_beyond_a_block_of_many_rows_left_out(kept):
    """In thousands of rows just the usual sizes of a block are tried."""
    x, W, dy = seeded()(3, 600, 4)
    evidence = Evidence({"x": x, "W": W[:4]}, (), (dy,), torch.matmul)
    found = diagnose(x[:kept].T @ dy[:kept], x.T @ dy, evidence, "dW")
    assert (found and found.text) == {512: "all from row 512 on of dimension 0 of the cotangent left out"}.get(kept)


def test_gradients_that_are_swapped_are_measured_both():
    report = check_backward(
        lambda y, x: (np.arctan2(y, x), (y, x)),
        lambda d, c: (-d * c[0] / (c[0] ** 2 + c[1] ** 2), d * c[1] / (c[0] ** 2 + c[1] ** 2)),
        [t.numpy() for t in seeded()(2, 5, 7)],
        cases=[],
    )
    assert [row.diagnosis.kind for row in report.failures] == ["swapped", "swapped"]


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
