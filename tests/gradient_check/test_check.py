"""`check_backward`: what is right passes, what is fed and judged by, and what the report says."""

import json

import numpy as np
import pytest
import torch

from gallery import ENTRIES, named
from gallery.affine import LINEAR
from gallery.losses import SOFTMAX
from gradient_check import check_backward, directional_derivative
from tests.support.both_ways import differ
from tests.support.checking import draw, first_failure

EXAMPLE = LINEAR.arguments(0)
linear, linear_backward = LINEAR.forward, LINEAR.backward


def relu(z):
    return torch.relu(z), z


def swap(**names):
    """The linear backward with one gradient replaced: `swap(dW=lambda dz, x, W: …)`."""

    def changed(dz, cache):
        right = dict(zip(("dx", "dW", "db"), linear_backward(dz, cache), strict=True))
        return tuple((right | {n: f(dz, *cache) for n, f in names.items()}).values())

    return changed


def test_the_rows_of_the_example():
    report = check_backward(SOFTMAX.forward, SOFTMAX.backward, SOFTMAX.arguments(0))
    report.assert_passed()
    assert [(row.name, row.oracle) for row in report.rows if not row.case] == [
        ("dz", "autograd"), ("gradients", "differences"), ("dot product", "dot product"), ("pure", ""), ("linear", ""),
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_a_right_backward_passes_in_every_precision(dtype):
    report = check_backward(linear, linear_backward, EXAMPLE, dtypes=[dtype])
    report.assert_passed()
    assert {row.oracle for row in report.rows if not row.case} == {"autograd", "differences", "dot product", ""}


def test_several_precisions_are_told_apart_in_the_report():
    report = check_backward(linear, linear_backward, EXAMPLE, dtypes=["float64", torch.float32], cases=[])
    assert {row.label for row in report.rows if row.name == "dW"} == {"dW in float64", "dW in float32"}
    errors = [row.relative_error for row in report.rows if row.label == "dW in float32" and row.oracle == "autograd"]
    assert all(1e-9 < error < 1e-6 for error in errors)


def test_the_example_is_checked_in_its_own_precision_unless_another_is_asked_for():
    report = check_backward(linear, linear_backward, [v.float() for v in EXAMPLE], cases=[])
    report.assert_passed()
    assert all(row.relative_error > 1e-9 for row in report.rows if row.oracle == "autograd" and row.name != "db")


MISTAKES = {entry.name: entry for entry in ENTRIES}


@pytest.mark.sweep(5)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "name",
    [
        "bias: mean instead of sum",
        "weight: sign",
        "squared error: ½",
        "dx: zeros",
        "bias: forgotten",
        "bias: shape (1, n)",
        "cotangent ignored",
        "last example lost",
    ],
)
def test_a_mistake_of_the_gallery_is_named_in_lower_precision_too(name, dtype):
    entry = MISTAKES[name]
    arguments, fixed = entry.layer.arguments(0), entry.layer.not_differentiable
    report = check_backward(*entry.pair(right=False), arguments, not_differentiable=fixed, dtypes=[dtype])
    assert named(report).kind in entry.diagnosis


def test_all_that_is_promised_is_fed():
    def forward(x, ids):
        return x[ids].tanh(), (x, ids)

    def backward(da, cache):
        x, ids = cache
        return torch.zeros_like(x).index_add(0, ids, da * (1 - x[ids].tanh() ** 2))

    report = check_backward(forward, backward, [draw(6, 4), torch.tensor([0, 5, 2])])
    report.assert_passed()
    assert list(dict.fromkeys(row.case for row in report.rows)) == [
        "",
        "cotangent transposed", "cotangent sliced", "cotangent offset", "cotangent expanded",
        "cotangent expanded from one number",
        "inputs transposed", "inputs sliced", "inputs offset", "x expanded",
        "one example less", "one example", "no example",
        "x zeros", "x all zero", "x next to zero", "x tied", "x ±1e4", "x of all sizes",
        "ids repeated",
    ]  # fmt: skip


def test_cases_are_chosen():
    report = check_backward(linear, linear_backward, EXAMPLE, cases=["batch"])
    assert {row.case for row in report.rows} == {"", "one example less", "one example", "no example"}


def test_arrays_are_given_to_a_numpy_layer():
    def forward(x, W):
        assert isinstance(x, np.ndarray)
        return np.tanh(x @ W.T), (x, W)

    def backward(da, cache):
        x, W = cache
        dz = da * (1 - np.tanh(x @ W.T) ** 2)
        return dz @ W, dz.T @ x

    example = [draw(5, 3).numpy(), draw(2, 3, seed=1).numpy()]
    report = check_backward(forward, backward, example)
    report.assert_passed()
    assert {row.oracle for row in report.rows} == {"differences", ""}
    with_reference = check_backward(forward, backward, example, reference=lambda x, W: torch.tanh(x @ W.T))
    with_reference.assert_passed()
    assert "reference" in {row.oracle for row in with_reference.rows}
    wrong = check_backward(forward, lambda da, cache: (backward(da, cache)[0], da.T @ cache[0]), example)
    assert first_failure(wrong).name == "dW"


def test_several_outputs():
    def forward(x, h):
        c = x * h
        return torch.tanh(c), c, (x, h, c)

    def backward(dh, dc, cache):
        x, h, c = cache
        dc = dc + dh * (1 - torch.tanh(c) ** 2)
        return dc * h, dc * x

    check_backward(forward, backward, [draw(5, 3), draw(5, 3, seed=1)], outputs=2).assert_passed()
    lost = check_backward(
        forward, lambda dh, dc, cache: backward(dh, 0 * dc, cache), [draw(5, 3), draw(5, 3, seed=1)], outputs=2
    )
    assert not lost.passed


def test_a_gradient_that_is_zero_in_exact_arithmetic_is_declared():
    def forward(x, b):  # what is added before centring is taken away again
        z = x + b
        return torch.tanh(z - z.mean(dim=0)), z

    def backward(da, z):
        dc = da * (1 - torch.tanh(z - z.mean(dim=0)) ** 2)
        dz = dc - dc.mean(dim=0)
        return dz, dz.sum(dim=0)

    example = [draw(9, 4), draw(4, seed=1)]
    undeclared = first_failure(check_backward(forward, backward, example))
    assert undeclared.name == "db"
    check_backward(forward, backward, example, zeros=["b"]).assert_passed()
    wrong = check_backward(forward, lambda da, z: (backward(da, z)[0], da.sum(dim=0)), example, zeros=["b"])
    assert first_failure(wrong).name == "db"


def test_declaring_a_zero_that_is_none_hides_nothing():
    report = check_backward(linear, swap(db=lambda dz, x, W: 0 * dz.sum(0)), EXAMPLE, zeros=["b"])
    assert first_failure(report).name == "db"


def test_a_gradient_that_is_zero_everywhere_shows_nothing():
    report = check_backward(relu, lambda da, z: da * (z > 0), [-draw(5, 3).abs() - 0.1])
    assert "nothing is shown" in first_failure(report).reason


@pytest.mark.parametrize(("slope", "right"), [(-0.5, False), (0.0, True), (0.5, True), (1.0, True), (1.5, False)])
def test_at_a_kink_every_slope_between_the_two_is_right_and_named_and_no_other(slope, right):
    z = draw(5, 3)
    z[1, 2] = 0
    report = check_backward(relu, lambda da, z: da * torch.where(z == 0, slope, (z > 0).double()), [z], cases=[])
    assert report.passed == right
    if right:
        assert [row.verdict for row in report.kinks] == ["kink"] * len(report.kinks)
        assert any(row.kinks == 1 for row in report.kinks)
        assert "1 at a kink" in str(report)
    else:
        assert (report.failures[0].index, report.failures[0].diagnosis.kind) == ((1, 2), "kink")


def test_what_is_not_differentiable_is_declared():
    def forward(x, mask, ids):
        return (x * mask)[ids], (mask, ids)

    def backward(dy, cache):
        mask, ids = cache
        return torch.zeros_like(mask).index_add(0, ids, dy) * mask

    arguments = [draw(4), draw(4, seed=1), torch.tensor([2, 0, 2])]
    check_backward(forward, backward, arguments, not_differentiable=["mask"], cases=[]).assert_passed()
    assert not check_backward(forward, backward, arguments, cases=[]).passed
    with pytest.raises(ValueError, match="none of the arguments is differentiable"):
        check_backward(forward, backward, arguments, not_differentiable=["x", "mask"])


def test_the_directional_derivative_is_the_jacobian_times_the_direction():
    x, W, u, U = (draw(2, 3, seed=seed) for seed in range(4))
    tangent = directional_derivative(lambda x, W: (x @ W.T, None), [x, W], [0, 1], [u, U])
    torch.testing.assert_close(tangent, u @ W.T + x @ U.T)


@pytest.mark.parametrize("seed", range(3))
def test_the_cotangent_is_never_the_example_itself(seed):
    """As it would be if both were drawn from the same seed; batch norm takes such a cotangent to zero."""
    z = draw(3, 4, seed=seed)
    seen = []

    def backward(dz, cache):
        seen.append(dz.clone())
        return dz

    check_backward(lambda z: (z + 0, z), backward, [z], seed=seed).assert_passed()
    assert differ(seen[0], z)


def test_a_failure_fits_on_a_screen_and_says_what_was_not_looked_at():
    wrong = swap(**{name: lambda dz, x, W: dz for name in ("dx", "dW", "db")})
    text = str(check_backward(linear, wrong, EXAMPLE))
    assert len(text.splitlines()) <= 24
    assert max(map(len, text.splitlines())) <= 120
    assert text.splitlines()[-1] == "note: nothing else was fed, because the example itself failed"


def test_the_report_as_json_and_as_an_exit_status():
    good, bad = (check_backward(linear, b, EXAMPLE) for b in (linear_backward, swap(db=lambda dz, x, W: None)))
    assert (good.exit_status, bad.exit_status) == (0, 1)
    said = json.loads(bad.to_json())
    assert said["passed"] is False
    wrong = [row for row in said["rows"] if row["verdict"] == "WRONG"]
    assert wrong[0]["name"] == "db"
    assert wrong[0]["relative_error"] is None, "JSON has no infinity"
    assert wrong[0]["diagnosis"]["kind"] == "missing"


def test_labels_and_candidates_reach_the_report():
    extra = draw(3, 5, seed=7)
    wrong = swap(dW=lambda dz, x, W: dz.T @ x - 0.3 * extra)
    report = check_backward(
        linear, wrong, EXAMPLE, labels={"W": "BP4, layer 1, ∂C/∂W"}, candidates={"the penalty": extra}
    )
    row = first_failure(report)
    assert row.label == "BP4, layer 1, ∂C/∂W"
    assert row.diagnosis.kind == "term"
    assert "the penalty" in row.diagnosis.text
