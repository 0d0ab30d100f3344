"""`check_backward`: what is right passes, what is fed and judged by, what is found so, and what the report says."""

import json
from functools import partial

import numpy as np
import pytest
import torch

from gallery import named
from gallery.affine import LINEAR
from gallery.attention import EMBEDDING
from gallery.diagnosed import NOISE, RELU
from gallery.elementwise import TANH
from gallery.losses import SOFTMAX
from gallery.right.singular import centred, centred_backward
from gradient_check import Report, Row, check_backward, check_function, directional_derivative
from tests.support.both_ways import differ
from tests.support.checking import MISTAKES, draw, first_failure, function_of

EXAMPLE = LINEAR.arguments(0)
linear, linear_backward = LINEAR.forward, LINEAR.backward


def test_the_rows_of_the_example():
    report = check_backward(SOFTMAX.forward, SOFTMAX.backward, SOFTMAX.arguments(0))
    report.assert_passed()
    rows = " | ".join(f"{row.name}: {row.oracle}" for row in report.rows if not row.case)
    assert rows == "dz: autograd | gradients: differences | dot product: dot product | pure:  | linear: "


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_a_right_backward_passes_in_every_precision(dtype):
    report = check_backward(linear, linear_backward, EXAMPLE, dtypes=[dtype])
    report.assert_passed()
    assert {row.oracle for row in report.rows if not row.case} == {"autograd", "differences", "dot product", ""}


def test_precisions_are_told_apart_and_unless_one_is_asked_for_the_examples_own_is_checked():
    asked = check_backward(linear, linear_backward, EXAMPLE, dtypes=["float64", torch.float32], cases=[])
    assert {row.label for row in asked.rows if row.name == "dW"} == {"dW in float64", "dW in float32"}
    own = check_backward(linear, linear_backward, [v.float() for v in EXAMPLE], cases=[])
    own.assert_passed()
    rows = [row for row in (*asked.rows, *own.rows) if row.oracle == "autograd"]
    errors = [row.relative_error for row in rows if row.label in ("dW in float32", "dW", "dx")]
    assert [1e-9 < error < 1e-6 for error in errors] == [True] * 3, errors


SIMPLE = (
    "bias: mean instead of sum | weight: divided by the batch again | weight: sign | squared error: ½ | dx: zeros | "
    "dW transposed | bias: forgotten | bias: shape (1, n) | cotangent ignored | last example lost"
)


@pytest.mark.sweep(5)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", SIMPLE.split(" | "))
def test_a_mistake_of_the_gallery_is_named_in_lower_precision_too(name, dtype):
    entry = MISTAKES[name]
    arguments, fixed = entry.layer.arguments(0), entry.layer.not_differentiable
    report = check_backward(*entry.pair(right=False), arguments, not_differentiable=fixed, dtypes=[dtype])
    assert named(report).kind in entry.diagnosis


def test_all_that_is_promised_is_fed_or_what_is_chosen():
    report = check_backward(EMBEDDING.forward, EMBEDDING.backward, [torch.tensor([0, 5, 2]), draw(6, 4)])
    report.assert_passed()
    assert " | ".join(dict.fromkeys(row.case for row in report.rows)) == (
        " | cotangent transposed | cotangent sliced | cotangent offset | cotangent expanded"
        " | cotangent expanded from one number | inputs transposed | inputs sliced | inputs offset | W expanded"
        " | one example less | one example | 7 examples | 1,031 examples | an empty batch"
        " | W zeros | W all zero | W next to zero | W tied | W ±1e4 | W of all sizes | ids repeated"
        " | cotangents in float32"
    )
    report = check_backward(linear, linear_backward, EXAMPLE, cases=["repeats", "axes"])
    assert {row.case for row in report.rows} == {""}


def test_repeated_ids_are_fed_even_where_the_example_has_none():
    pair, distinct = MISTAKES["embedding: `dW[ids] += dy`"].pair(right=False), [torch.tensor([0, 1, 3]), draw(7, 4)]
    assert check_backward(*pair, distinct, cases=[]).passed
    row = first_failure(check_backward(*pair, distinct, cases=["repeats"]))
    assert (row.case, row.diagnosis.kind) == ("ids repeated", "repeated indices")


def test_arrays_are_given_to_a_numpy_layer():
    def forward(x, W, b):
        assert isinstance(x, np.ndarray)
        return linear(x, W, b)

    example = [v.numpy() for v in EXAMPLE]
    for reference, oracle in ((None, set()), (lambda x, W, b: x @ W.T + b, {"reference", "dot product"})):
        report = check_backward(forward, linear_backward, example, reference=reference)
        report.assert_passed()
        assert {row.oracle for row in report.rows} == {"differences", ""} | oracle
    assert first_failure(check_backward(forward, MISTAKES["weight: sign"].pair(right=False)[1], example)).name == "dW"


def test_a_gradient_that_is_zero_in_exact_arithmetic_is_declared_and_that_hides_nothing():
    example = [draw(9, 4), draw(4, seed=1)]
    assert first_failure(check_backward(centred, centred_backward, example)).name == "db"
    check_backward(centred, centred_backward, example, zeros=["b"]).assert_passed()
    wrong = check_backward(centred, lambda da, z: (centred_backward(da, z)[0], da.sum(dim=0)), example, zeros=["b"])
    assert first_failure(wrong).name == "db"
    zero = lambda dz, cache: (*linear_backward(dz, cache)[:2], 0 * dz.sum(0))  # noqa: E731
    assert first_failure(check_backward(linear, zero, EXAMPLE, zeros=["b"])).name == "db"


def test_zeros_everywhere_show_nothing_unless_edge_cases_do():
    relu = partial(check_backward, RELU.forward, lambda da, z: da * (z > 0), [-draw(5, 3).abs() - 0.1])
    assert "nothing is shown" in first_failure(relu(cases=[])).reason
    assert "edge cases show it where it is not" in str(relu())
    sign = lambda x, w: (x.sign() * w, x)  # noqa: E731
    report = check_backward(sign, lambda dy, x: (0 * dy, dy * x.sign()), [draw(4, 3), draw(4, 3, seed=1)])
    assert (report.passed, "dx is zero everywhere in the example, and in all" in str(report)) == (True, True)
    assert not check_backward(sign, lambda dy, x: (1e-9 * dy, dy * x.sign()), [draw(4, 3), draw(4, 3, seed=1)]).passed


@pytest.mark.parametrize(("slope", "right"), [(-0.5, False), (0.0, True), (0.5, True), (1.0, True), (1.5, False)])
def test_at_a_kink_every_slope_between_the_two_is_right_and_named_and_no_other(slope, right):
    z = draw(5, 3)
    z[1, 2] = 0
    backward = lambda da, z: da * torch.where(z == 0, slope, (z > 0).double())  # noqa: E731
    report = check_backward(RELU.forward, backward, [z], cases=[])
    assert report.passed == right
    if right:
        assert {row.verdict for row in report.kinks} == {"kink"}
        assert ("1 at a kink" in str(report), 1 in [row.kinks for row in report.kinks]) == (True, True)
    else:
        assert (report.failures[0].index, report.failures[0].diagnosis.kind) == ((1, 2), "kink")


def test_what_is_not_differentiable_has_to_be_declared():
    pair, example = (NOISE.forward, NOISE.backward), NOISE.arguments(0)
    check_backward(*pair, example, not_differentiable=["noise"], cases=[]).assert_passed()
    assert not check_backward(*pair, example, cases=[]).passed


def test_the_directional_derivative_is_the_jacobian_times_the_direction():
    x, W, u, U = (draw(2, 3, seed=seed) for seed in range(4))
    tangent = directional_derivative(lambda x, W: (x @ W.T, None), [x, W], [0, 1], [u, U])
    torch.testing.assert_close(tangent, u @ W.T + x @ U.T)


def test_the_cotangent_is_never_the_example_itself():
    """As it would be if both were drawn from the same seed; batch norm takes such a cotangent to zero."""
    z, seen, seed = draw(3, 4, seed=2), [], 2
    check_backward(lambda z: (z + 0, z), lambda dz, z: seen.append(dz.clone()) or dz, [z], seed=seed).assert_passed()
    assert differ(seen[0], z)


def test_a_forward_that_writes_to_its_argument_is_rejected():
    def forward(z):
        a = torch.tanh(z)
        if torch.is_inference_mode_enabled():
            z.add_(1)
        return a, a

    row = check_backward(forward, TANH.backward, [draw(3, 4)]).failures[-1]
    assert (row.name, row.reason) == ("pure", "an argument, an output or the cotangent was written to")


def test_a_backward_that_leans_on_autograd_is_rejected():
    def forward(z):
        z = z.detach().requires_grad_()
        return torch.tanh(z), (torch.tanh(z), z)

    row = first_failure(check_backward(forward, lambda da, cache: torch.autograd.grad(*cache, da)[0], [draw(3, 4)]))
    assert (row.diagnosis.kind, "RuntimeError" in row.reason) == ("raised", True)


CALLS = []
NOISES = {
    "forward is random: a second pass": lambda x: torch.rand(x.shape).to(x),
    "a second pass gave another output": lambda x: CALLS.append(x) or torch.full_like(x, len(CALLS)),
    "a second forward pass gave another output": lambda x: torch.ones_like(x) + 1e-9 * torch.rand(()),
}


@pytest.mark.parametrize("said", NOISES)
def test_noise_that_is_drawn_inside_is_told_from_a_state_and_from_the_order_of_a_sum(said):
    def forward(x):
        mask = NOISES[said](x)
        return x * mask, mask

    report = check_backward(forward, lambda dy, mask: dy * mask, [draw(8, 9)], oracles=["differences"])
    assert [row.reason[: len(said)] for row in report.failures] == [said]
    assert ("nondeterministic=1e-06" in report.failures[0].reason) == ("forward pass" in said)


def test_a_wrong_forward_with_its_own_right_derivative_needs_the_reference():
    entry = MISTAKES["GELU: wrong forward, its own derivative"]
    check_backward(*entry.pair(right=False), entry.layer.arguments(0), cases=[]).assert_passed()
    row = first_failure(entry.ours(right=False))
    assert (row.name, row.oracle, row.reason[:22]) == ("output", "reference", "forward is wrong: at [")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lower_precision_without_an_oracle_is_judged_by_its_own_float64(dtype):
    """And quickly: differences look at float64 only."""

    def backward(dz, cache):
        dx, dW, db = linear_backward(dz, cache)
        if dz.dtype != torch.float64:
            dW[17, 23] += factor * dW.norm() / 40
        return dx, dW, db

    example, function = [draw(30, 40), draw(40, 40, seed=1), draw(40, seed=2)], function_of(linear, backward)
    factor = 0.0
    report = check_function(function, example, dtypes=[dtype])
    assert (report.passed, report.kinks) == (True, ())
    factor = 1.0
    row = first_failure(check_function(function, example, dtypes=[dtype]))
    origin = row.origin.startswith("beside its float64, which differences confirm")
    assert (row.name, row.index, origin) == ("dW", (17, 23), True)


def test_16_bits_do_not_let_a_gradient_of_zeros_pass():
    example, options = [3 + 0.01 * draw(50)], {"dtypes": ["bfloat16"], "oracles": ["autograd"]}
    assert not check_backward(lambda x: (x.var(), x), lambda d, x: 0 * x, example, **options).passed


def test_a_layout_that_gives_garbage_is_not_excused_as_rounding():
    entry = MISTAKES["expanded weight misread"]
    report = check_function(function_of(*entry.pair(right=False)), entry.layer.arguments(0))
    assert {(row.case, row.name) for row in report.failures} >= {("gamma expanded", "dx"), ("inputs sliced", "dx")}
    assert {row.diagnosis.kind for row in report.failures} == {"strided"}


def test_a_steep_forward_is_no_kink_where_autograd_has_its_slope():
    x = 1e-11 * (draw(5, 6).abs() + 0.1)
    row = first_failure(check_backward(lambda x: (x.log(), x), lambda dy, x: 7 * dy / x, [x], cases=[]))
    assert (row.oracle, row.diagnosis.kind) == ("autograd", "factor")


def test_a_failure_fits_on_a_screen_and_says_what_was_not_looked_at():
    wrong = lambda dz, cache: tuple(-2.5 * gradient for gradient in linear_backward(dz, cache))  # noqa: E731
    lines = str(check_backward(linear, wrong, EXAMPLE, dtypes=["float64", "float32"])).splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 120
    assert any(line.startswith("also wrong: ") for line in lines)
    assert lines[-1] == "note: edge cases were skipped, because the example itself failed"


def test_the_report_as_json_and_as_an_exit_status():
    good, bad = (MISTAKES["RMS norm: weight never trained"].ours(right) for right in (True, False))
    assert (good.exit_status, bad.exit_status) == (0, 1)
    said = json.loads(bad.to_json())
    row = next(row for row in said["rows"] if row["verdict"] == "WRONG")
    assert (said["passed"], row["name"], row["diagnosis"]["kind"]) == (False, "dgamma", "missing")
    assert row["relative_error"] is None, "JSON has no infinity"
    unsure = Report((*good.rows, Row("dx", "dx", (3,), False, "the oracles disagree", inconclusive=True)))
    assert (unsure.passed, unsure.exit_status, unsure.to_dict()["rows"][-1]["verdict"]) == (False, 2, "inconclusive")
    first, reason, *_ = str(unsure).splitlines()
    assert (first.split(), reason.strip()) == (["dx", "3", "inconclusive"], "the oracles disagree")


def test_labels_and_candidates_reach_the_report():
    def wrong(dz, cache):
        dx, dW, db = linear_backward(dz, cache)
        return dx, dW - 0.3 * extra, db

    extra, labels = draw(3, 5, seed=7), {"W": "BP4, layer 1, ∂C/∂W"}
    row = first_failure(check_backward(linear, wrong, EXAMPLE, labels=labels, candidates={"the penalty": extra}))
    found = row.diagnosis
    assert (row.label, found.kind, "the penalty" in found.text) == ("BP4, layer 1, ∂C/∂W", "term", True)
