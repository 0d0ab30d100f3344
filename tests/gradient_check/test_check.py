"""`check_backward`, `check_function` and `check_step`: what they feed, what they find, what they refuse."""

import json
import re

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradient_check import (
    Step,
    assert_backward,
    assert_function,
    assert_gradients,
    assert_step,
    check_backward,
    check_function,
    check_step,
    compare_gradients,
)

DTYPES = ["float64", "float32", "bfloat16"]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear(x, W, b):
    return x @ W.T + b, (x, W)


def linear_backward(dz, cache):
    x, W = cache
    return dz @ W, dz.T @ x, dz.sum(dim=0)


LINEAR = [draw(7, 3), draw(5, 3, seed=1), draw(5, seed=2)]


def swap(backward, **names):
    """The linear backward with one gradient replaced: `swap(dW=lambda dz, x, W: …)`."""

    def changed(dz, cache):
        right = dict(zip(("dx", "dW", "db"), linear_backward(dz, cache), strict=True))
        return tuple((right | {n: f(dz, *cache) for n, f in names.items()}).values())

    return changed


def first_failure(report):
    assert not report.passed
    return report.failures[0]


# What is right passes


@pytest.mark.parametrize("dtype", [*DTYPES, "float16"])
def test_a_right_backward_passes_in_every_precision(dtype):
    report = check_backward(linear, linear_backward, LINEAR, dtypes=[dtype])
    report.assert_passed()
    assert {row.oracle for row in report.rows if not row.case} == {"autograd", "differences", "dot product", ""}


def test_several_precisions_are_told_apart_in_the_report():
    report = check_backward(linear, linear_backward, LINEAR, dtypes=["float64", torch.float32], cases=[])
    assert {row.label for row in report.rows if row.name == "dW"} == {"dW in float64", "dW in float32"}
    errors = [row.relative_error for row in report.rows if row.label == "dW in float32" and row.oracle == "autograd"]
    assert all(1e-9 < error < 1e-6 for error in errors)


def test_the_example_is_checked_in_its_own_precision_unless_another_is_asked_for():
    report = check_backward(linear, linear_backward, [v.float() for v in LINEAR], cases=[])
    report.assert_passed()
    assert all(row.relative_error > 1e-9 for row in report.rows if row.oracle == "autograd" and row.name != "db")


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
    report = check_backward(linear, linear_backward, LINEAR, cases=["batch"])
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
    report = check_backward(linear, swap(linear_backward, db=lambda dz, x, W: 0 * dz.sum(0)), LINEAR, zeros=["b"])
    assert first_failure(report).name == "db"


def test_a_gradient_that_is_zero_everywhere_shows_nothing():
    dead = [-draw(5, 3).abs() - 0.1]
    report = check_backward(lambda z: (torch.relu(z), z), lambda da, z: da * (z > 0), dead)
    assert "nothing is shown" in first_failure(report).reason


@pytest.mark.parametrize("slope", [0.0, 0.5, 1.0])
def test_at_a_kink_every_slope_between_the_two_is_right_and_named(slope):
    z = draw(5, 3)
    z[1, 2] = 0

    def backward(da, z):
        return da * torch.where(z == 0, slope, (z > 0).double())

    report = check_backward(lambda z: (torch.relu(z), z), backward, [z], cases=[])
    report.assert_passed()
    assert [row.verdict for row in report.kinks] == ["kink"] * len(report.kinks)
    assert any(row.kinks == 1 for row in report.kinks)
    assert "1 at a kink" in str(report)


@pytest.mark.parametrize("slope", [-0.5, 1.5])
def test_at_a_kink_a_slope_outside_of_the_two_is_wrong(slope):
    z = draw(5, 3)
    z[1, 2] = 0

    def backward(da, z):
        return da * torch.where(z == 0, slope, (z > 0).double())

    row = first_failure(check_backward(lambda z: (torch.relu(z), z), backward, [z]))
    assert (row.index, row.diagnosis.kind) == ((1, 2), "kink")


# What is wrong fails, and is named


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        (dict(db=lambda dz, x, W: dz.mean(dim=0)), "batch factor"),
        (dict(dW=lambda dz, x, W: -dz.T @ x), "sign"),
        (dict(dW=lambda dz, x, W: 2 * dz.T @ x), "factor"),
        (dict(dx=lambda dz, x, W: torch.zeros_like(x)), "zero"),
        (dict(db=lambda dz, x, W: None), "missing"),
        (dict(db=lambda dz, x, W: dz.sum(dim=0, keepdim=True)), "shape"),
        (dict(dW=lambda dz, x, W: torch.ones_like(dz).T @ x), "ones"),
        (dict(dx=lambda dz, x, W: dz @ W * (torch.arange(7) < 4).to(dz)[:, None]), "rows"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_known_mistake_is_named(wrong, kind, dtype):
    row = first_failure(check_backward(linear, swap(linear_backward, **wrong), LINEAR, dtypes=[dtype]))
    assert row.name == next(iter(wrong))
    assert row.diagnosis.kind == kind


def test_a_wrong_dtype_is_named():
    row = first_failure(check_backward(linear, swap(linear_backward, db=lambda dz, x, W: dz.sum(0).float()), LINEAR))
    assert (row.name, row.diagnosis.kind) == ("db", "dtype")


def test_strides_that_are_ignored_are_named():
    def backward(dz, cache):  # as a kernel that walks through memory
        return linear_backward(torch.as_strided(dz, dz.shape, (dz.shape[1], 1)), cache)

    report = check_backward(linear, backward, LINEAR)
    kinds = {row.diagnosis.kind for row in report.failures}
    assert kinds == {"strided"}
    assert {row.case for row in report.failures} >= {"cotangent transposed", "cotangent sliced"}


def test_writing_to_the_cotangent_is_found():
    def backward(da, a):
        return da.mul_(1 - a * a)

    report = check_backward(lambda z: (torch.tanh(z), torch.tanh(z)), backward, [draw(5, 3)])
    assert "in place" in {row.diagnosis.kind for row in report.failures}


def test_writing_to_an_input_is_found_in_a_function_too():
    class Negate(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.mark_dirty()
            x.neg_()
            return x.clone()

        @staticmethod
        def backward(ctx, dy):
            return -dy

    report = check_function(lambda x: Negate.apply(x), [draw(5, 3)])
    assert "in place" in {row.diagnosis.kind for row in report.failures if row.diagnosis}


def test_a_cache_that_is_shared_by_all_calls_is_found():
    shared = {}

    def forward(z):
        shared["a"] = torch.tanh(z)
        return shared["a"], None

    row = first_failure(check_backward(forward, lambda da, cache: da * (1 - shared["a"] ** 2), [draw(5, 3)]))
    assert (row.name, row.diagnosis.kind) == ("pure", "stale")


def test_noise_that_is_drawn_inside_is_found():
    def forward(x):
        mask = (torch.rand(x.shape) < 0.5).to(x)
        return x * mask, mask

    report = check_backward(forward, lambda dy, mask: dy * mask, [draw(8, 9)], oracles=["differences"])
    assert not report.passed


def test_clipping_inside_of_a_backward_is_not_linear():
    def backward(da, a):
        return (da * (1 - a * a)) * 1.0 if da.abs().max() < 4 else da.clamp(-1, 1) * (1 - a * a)

    big = [draw(50, 40)]
    report = check_backward(lambda z: (torch.tanh(z), torch.tanh(z)), backward, big, oracles=["dot product"])
    assert not report.passed


def test_a_wrong_forward_with_its_own_right_derivative_needs_the_reference():
    def forward(z):
        return 2 * torch.sigmoid(z), torch.sigmoid(z)

    def backward(da, a):
        return 2 * da * a * (1 - a)

    z = [draw(5, 3)]
    check_backward(forward, backward, z).assert_passed()
    row = first_failure(check_backward(forward, backward, z, reference=torch.sigmoid))
    assert (row.name, row.oracle) == ("output", "reference")
    assert row.reason.startswith("forward is wrong: at [")


def test_overflow_far_out_is_found():
    def backward(da, z):
        return da * torch.exp(z) / (1 + torch.exp(z))

    report = check_backward(lambda z: (F.softplus(z), z), backward, [draw(5, 3)])
    row = first_failure(report)
    assert (row.case, row.diagnosis.kind) == ("z ±1e4", "nan")


def test_an_empty_batch_and_a_batch_of_one_are_found():
    def squeezing(dz, cache):
        x, W = cache
        return (
            dz @ W,
            dz.squeeze().T @ x if len(x) > 1 else torch.outer(dz.squeeze(), dz.squeeze())[:5, :3],
            dz.sum(0),
        )

    report = check_backward(linear, squeezing, LINEAR)
    assert {row.case for row in report.failures} <= {"one example", "no example"}
    assert not report.passed

    def indexing(dz, cache):
        dz[0]
        return linear_backward(dz, cache)

    row = first_failure(check_backward(linear, indexing, LINEAR))
    assert (row.case, row.diagnosis.kind) == ("no example", "raised")
    assert "test_check.py, line" in row.reason


def test_a_failure_fits_on_a_screen_and_says_what_was_not_looked_at():
    wrong = swap(linear_backward, **{name: lambda dz, x, W: dz for name in ("dx", "dW", "db")})
    text = str(check_backward(linear, wrong, LINEAR))
    assert len(text.splitlines()) <= 24
    assert max(map(len, text.splitlines())) <= 120
    assert text.splitlines()[-1] == "note: nothing else was fed, because the example itself failed"


def test_the_report_as_json_and_as_an_exit_status():
    good, bad = (check_backward(linear, b, LINEAR) for b in (linear_backward, swap(None, db=lambda dz, x, W: None)))
    assert (good.exit_status, bad.exit_status) == (0, 1)
    said = json.loads(bad.to_json())
    assert said["passed"] is False
    wrong = [row for row in said["rows"] if row["verdict"] == "WRONG"]
    assert wrong[0]["name"] == "db"
    assert wrong[0]["relative_error"] is None, "JSON has no infinity"
    assert wrong[0]["diagnosis"]["kind"] == "missing"


def test_labels_and_candidates_reach_the_report():
    extra = draw(5, 3, seed=7)
    wrong = swap(None, dW=lambda dz, x, W: dz.T @ x - 0.3 * extra)
    report = check_backward(
        linear, wrong, LINEAR, labels={"W": "BP4, layer 1, ∂C/∂W"}, candidates={"the penalty": extra}
    )
    row = first_failure(report)
    assert row.label == "BP4, layer 1, ∂C/∂W"
    assert row.diagnosis.kind == "term"
    assert "the penalty" in row.diagnosis.text


# Functions and modules


class Square(torch.autograd.Function):
    factor = 2.0

    @staticmethod
    def forward(ctx, x, scale):
        ctx.save_for_backward(x)
        ctx.scale = scale
        return scale * x * x

    @staticmethod
    def backward(ctx, dy):
        (x,) = ctx.saved_tensors
        return Square.factor * ctx.scale * x * dy, None


def test_an_autograd_function_with_and_without_a_reference(monkeypatch):
    example = [draw(5, 3), 1.5]
    check_function(Square.apply, example).assert_passed()
    report = check_function(Square.apply, example, reference=lambda x, scale: scale * x**2)
    report.assert_passed()
    assert [row.oracle for row in report.rows if row.name == "dx" and not row.case] == ["reference"]
    monkeypatch.setattr(Square, "factor", 1.0)
    assert first_failure(check_function(Square.apply, example)).oracle == "differences"
    row = first_failure(check_function(Square.apply, example, reference=lambda x, scale: scale * x**2))
    assert row.diagnosis.kind == "factor"


def test_a_steep_forward_is_no_kink_where_autograd_has_its_slope():
    x = 1e-11 * (draw(5, 6).abs() + 0.1)
    row = first_failure(check_backward(lambda x: (x.log(), x), lambda dy, x: 7 * dy / x, [x], cases=[]))
    assert (row.oracle, row.diagnosis.kind) == ("autograd", "factor")


def test_differences_that_are_lost_in_the_rounding_of_forward_show_nothing(monkeypatch):
    monkeypatch.setattr(Square, "factor", 6.0)
    row = first_failure(check_function(lambda x: Square.apply(x, 1.0) + 1e12, [draw(5, 3)], cases=[]))
    assert row.reason.startswith("nothing is shown: forward is too steep, or its values too large")


def test_outputs_may_be_nested_and_left_out():
    report = check_function(nn.LSTM(3, 2).double(), [draw(4, 5, 3)], cases=[])
    report.assert_passed()
    assert not check_function(lambda x: (x.sin(), None, {"y": x * x.detach()}), [draw(3)], cases=[]).passed


def test_a_gradient_in_single_precision_beside_others_in_double():
    check_function(lambda x, y: x.double() * y, [draw(3).float(), draw(3, seed=1)], cases=[]).assert_passed()


def test_a_numpy_scalar_is_a_number():
    report = check_function(Square.apply, [draw(5, 3), np.float64(1.5)], cases=[])
    report.assert_passed()
    assert [row.name for row in report.rows if row.oracle] == ["dx"]


def test_a_modules_parameters_are_checked_too():
    module = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh()).double()
    # No layouts: torch's own batch norm on a CPU reads a weight that is not contiguous as if it were (torch 2.15).
    report = check_function(module, [draw(7, 3)], zeros=["0.bias"], cases=["batch", "values"])
    report.assert_passed()
    assert {row.name for row in report.rows} >= {"dinput", "d0.weight", "d0.bias", "d1.weight", "d1.bias"}
    assert module[1].num_batches_tracked == 0


# Steps


def step(scale=1.0):
    x_names = ("W", "b")

    def run(x, y, W, b):
        z = x @ W.T + b
        delta = scale * (z - y) / len(x)
        gradients = dict(zip(x_names, (delta.T @ x, delta.sum(0)), strict=True))
        return Step(((z - y) ** 2).sum() / 2 / len(x), gradients, {"z": z, "δ z": delta})

    return run


class Net(nn.Module):
    def __init__(self, W, b):
        super().__init__()
        self.layer = nn.Linear(3, 5).double()
        self.layer.load_state_dict({"weight": W, "bias": b})

    def forward(self, x, y):
        return ((self.layer(x) - y) ** 2).sum() / 2 / len(x)


def renamed(run):
    def with_names(x, y):
        made = run(x, y, *LINEAR[1:])
        gradients = {"layer.weight": made.gradients["W"], "layer.bias": made.gradients["b"]}
        return Step(made.loss, gradients, {"layer": made.intermediates["z"], "δ layer": made.intermediates["δ z"]})

    return with_names


def test_two_implementations_of_a_step():
    batch = [LINEAR[0], draw(7, 5, seed=3)]
    report = check_step(renamed(step()), Net(*LINEAR[1:]), batch)
    report.assert_passed()
    assert [row.name for row in report.rows] == ["layer", "loss", "δ layer", "dlayer.weight", "dlayer.bias"]
    row = first_failure(check_step(renamed(step(2.0)), Net(*LINEAR[1:]), batch))
    assert (row.name, row.diagnosis.kind) == ("δ layer", "factor")


def test_intermediates_of_one_side_only_are_noted_and_a_missing_gradient_fails():
    batch = [LINEAR[0], draw(7, 5, seed=3)]

    def without(x, y):
        made = renamed(step())(x, y)
        return Step(made.loss, {"layer.weight": made.gradients["layer.weight"]}, {"mine": x})

    report = check_step(without, Net(*LINEAR[1:]), batch)
    assert [(row.name, row.diagnosis.kind) for row in report.failures] == [("dlayer.bias", "missing")]
    assert report.notes == ("only step_a has mine: not compared", "only step_b has layer, δ layer: not compared")
    row = first_failure(check_step(Net(*LINEAR[1:]), without, batch))
    assert row.name == "dlayer.bias"


def test_a_step_in_single_precision_is_judged_by_one_in_double():
    batch = [LINEAR[0].float(), draw(7, 5, seed=3).float()]
    W, b = LINEAR[1].float(), LINEAR[2].float()
    a, truth = Net(W.double(), b.double()).float(), Net(W.double(), b.double())
    check_step(a, Net(W.double(), b.double()).float(), batch, truth=truth).assert_passed()
    with pytest.raises(ValueError, match="give `truth`"):
        check_step(a, a, batch)


def test_the_assert_forms_hold_the_report():
    for call in (
        lambda: assert_backward(linear, swap(None, db=lambda dz, x, W: -dz.sum(0)), LINEAR),
        lambda: assert_function(Square.apply, [draw(5), 1.0], reference=lambda x, s: s * x**3),
        lambda: assert_gradients({"db": -LINEAR[2]}, {"db": LINEAR[2]}),
        lambda: assert_step(renamed(step(-1.0)), Net(*LINEAR[1:]), [LINEAR[0], draw(7, 5)]),
    ):
        with pytest.raises(AssertionError, match="WRONG"):
            call()
    assert_backward(linear, linear_backward, LINEAR)


# Dictionaries


def test_arrays_state_dicts_and_integers_are_compared():
    module = nn.BatchNorm1d(3).double()
    state = module.state_dict()
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    compare_gradients(arrays, state, allow_trivial=True).assert_passed()
    arrays["num_batches_tracked"] = np.int64(3)
    row = first_failure(compare_gradients({**arrays, "num_batches_tracked": np.array(3)}, state, allow_trivial=True))
    assert row.reason == "1 of 1 differ; at [] it is 3, expected 0"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [3, 1000, 1_000_000])
def test_what_must_be_visible_is_visible_whatever_the_size(size, dtype):
    """0.1% of one element of root-mean-square size at float32, 1e-9 at float64; with a real reference's rounding."""
    error = 1e-3 if dtype == torch.float32 else 1e-9
    truth = draw(size, seed=size)
    truth[size // 2] = truth.norm() / size**0.5
    expected = (truth * (1 + 2 * torch.finfo(dtype).eps * draw(size, seed=5))).to(dtype)
    wrong = truth.clone()
    wrong[size // 2] *= 1 + error
    assert compare_gradients({"v": truth.to(dtype)}, {"v": expected}, truth={"v": truth}).passed
    assert not compare_gradients({"v": wrong.to(dtype)}, {"v": expected}, truth={"v": truth}).passed


# Bad input


def relu(z):
    return torch.relu(z), z


def relu_backward(da, z):
    return da * (z > 0)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: check_backward(relu, relu_backward, draw(3)), "the example is a Tensor: give a list of"),
        (lambda: check_backward(relu, relu_backward, [torch.arange(3)]), r"nothing to check \(z is torch.int64\)"),
        (lambda: check_backward(relu, relu_backward, [draw(3)], not_differentiable=["z"]), "declared as not"),
        (lambda: check_backward(relu, relu_backward, [draw(3)], not_differentiable=["y"]), "'y' in not_differentiable"),
        (lambda: check_backward(relu, relu_backward, [draw(3)], zeros="z"), "zeros is the string 'z'"),
        (lambda: check_backward(relu, relu_backward, [draw(3)], oracles=["oracle"]), "'oracle' in oracles is unknown"),
        (lambda: check_backward(relu, relu_backward, [draw(3)], oracles=[]), "oracles is empty"),
        (lambda: check_backward(relu, relu_backward, [draw(3)], oracles=["reference"]), "give `reference`"),
        (lambda: check_backward(relu, relu_backward, [draw(3)], cases=["all"]), "'all' in cases is unknown"),
        (lambda: check_backward(relu, relu_backward, [draw(3)], dtypes=["double"]), "dtype 'double' is unknown"),
        (lambda: check_backward(relu, relu_backward, [draw(3)], dtypes=[]), "dtypes is empty"),
        (lambda: check_backward(relu, relu_backward, [torch.tensor([0.0, torch.nan])]), r"z is nan at \[1\]"),
        (lambda: check_backward(relu, relu_backward, [draw(3) + 0j]), "z is torch.complex128"),
        (
            lambda: check_backward(lambda z: z, relu_backward, [draw(3)]),
            "forward returned 1 values: give the output and",
        ),
        (lambda: check_backward(lambda z: (None, z), relu_backward, [draw(3)]), "forward returned a NoneType where"),
        (lambda: check_backward(lambda z: (z > 0, z), relu_backward, [draw(3)]), "an output of forward is torch.bool"),
        (lambda: check_backward(lambda z: (z / 0, z), relu_backward, [draw(3)]), "forward gives values that are not"),
        (
            lambda: check_backward(linear, linear_backward, [draw(7, 3), draw(5, 4), draw(5)]),
            r"forward raised RuntimeError: .*it was given x \(7, 3\), W \(5, 4\)",
        ),
        (lambda: check_function(lambda x: x.detach(), [draw(3)]), "no output of the function has a gradient function"),
        (lambda: check_function(lambda x: None, [draw(3)]), "forward returned a NoneType"),
        (
            lambda: check_function(torch.tanh, [draw(3)], oracles=["autograd"]),
            "autograd through this function is what is on trial",
        ),
        (lambda: check_function(torch.tanh, [draw(3).numpy()]), "give tensors in the example"),
        (
            lambda: check_function(torch.tanh, [draw(3)], reference=lambda x: x[:2]),
            "the reference could not be asked: RuntimeError: Mismatch in shape",
        ),
        (
            lambda: check_function(torch.tanh, [draw(3)], reference=lambda x, y: x),
            "the reference could not be asked: TypeError",
        ),
        (lambda: compare_gradients({}, {}), "nothing to compare"),
        (lambda: compare_gradients({"v": [1.0]}, {"v": draw(1)}), "actual v is a list: give a tensor"),
        (lambda: compare_gradients({"v": np.array(["a"])}, {"v": draw(1)}), "actual v is an array of"),
        (
            lambda: check_step(lambda x: x, lambda x: x, [draw(3)]),
            "step_a returned a Tensor: return a gradient_check.Step",
        ),
        (lambda: check_step(nn.Linear(3, 2).double(), lambda x: x, [draw(3)]), "step_a returned a tensor of shape"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_bad_input_gets_one_clear_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_too_few_and_too_many_gradients_are_counted():
    few = first_failure(check_backward(linear, lambda dz, c: linear_backward(dz, c)[:2], LINEAR))
    assert few.reason == "backward returned 2 gradients for the 3 arguments dx, dW, db"
    ids = torch.tensor([0, 2, 2])

    def gather(x, ids):
        return x[ids], (x, ids)

    many = first_failure(check_backward(gather, lambda dy, c: (dy, dy), [draw(4), ids]))
    assert many.reason == "backward returned 2 gradients for the 1 arguments dx; none is due for ids (torch.int64)"


def test_what_cannot_be_asked_is_noted():
    report = check_function(Square.apply, [draw(5, 3), 2.0], cases=[])
    assert any(re.match("dot product could not be asked: .*jvp", note) for note in report.notes)


# What a review by strangers found to pass


class Split(torch.autograd.Function):
    """Two outputs, x² and x³; the wrong one forgets its second cotangent where the first is absent."""

    right = True

    @staticmethod
    def forward(ctx, x):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x)
        return x**2, x**3

    @staticmethod
    def backward(ctx, dsquare, dcube):
        (x,) = ctx.saved_tensors
        if dsquare is None:
            return 3 * x * x * dcube if Split.right else None
        return 2 * x * dsquare if dcube is None else 2 * x * dsquare + 3 * x * x * dcube


def test_every_output_is_fed_alone(monkeypatch):
    check_function(Split.apply, [draw(5, 3)]).assert_passed()
    monkeypatch.setattr(Split, "right", False)
    row = first_failure(check_function(Split.apply, [draw(5, 3)]))
    assert (row.name, row.reason[:80]) == (
        "linear", "dx is not linear in the cotangent: for the outputs one by one it is off by 8.83e"[:80],
    ) or "the outputs one by one" in row.reason  # fmt: skip


class Frozen(torch.autograd.Function):
    right = True

    @staticmethod
    def forward(ctx, x, W):
        ctx.save_for_backward(x, W)
        return x @ W.T

    @staticmethod
    def backward(ctx, dz):
        x, W = ctx.saved_tensors
        dx = dz @ W if ctx.needs_input_grad[0] else None
        scratch = 1.0 if ctx.needs_input_grad[0] or Frozen.right else 0.5
        return dx, scratch * dz.T @ x if ctx.needs_input_grad[1] else None


def test_every_gradient_is_asked_for_alone(monkeypatch):
    check_function(Frozen.apply, LINEAR[:2]).assert_passed()
    monkeypatch.setattr(Frozen, "right", False)
    row = first_failure(check_function(Frozen.apply, LINEAR[:2]))
    assert (row.name, row.reason[:40]) == ("alone", "dW is another where no other gradient is")


@pytest.mark.parametrize(
    "spoil",
    [lambda dz: dz.clamp(-100, 100), lambda dz: torch.where(dz.abs() < 1e-6, 0, dz)],
    ids=["clamped", "flushed"],
)
def test_cotangents_of_all_sizes_are_fed(spoil):
    row = first_failure(check_backward(linear, lambda dz, cache: linear_backward(spoil(dz), cache), LINEAR))
    assert (row.name, row.diagnosis.kind) == ("linear", "not linear")


def test_a_buffer_that_is_returned_and_written_over_is_found():
    buffer = torch.empty(7, 3, dtype=torch.float64)

    def backward(dz, cache):
        x, W = cache
        return torch.mm(dz, W, out=buffer) if len(x) == 7 else dz @ W, dz.T @ x, dz.sum(dim=0)

    row = first_failure(check_backward(linear, backward, LINEAR))
    assert (row.name, "wrote over the gradients" in row.reason) == ("linear", True)


@pytest.mark.parametrize("dim", [1, 2])
def test_layouts_of_images_and_of_attention_are_fed(dim):
    def backward(da, a):
        if da.stride(dim) == 1 and da.shape[dim] > 1 and not da.is_contiguous():
            da = da.flip(dim)
        return da * (1 - a * a)

    def strided_heads(da, a):
        if da.stride(1) < da.stride(2):
            da = da.flip(2)
        return da * (1 - a * a)

    wrong = backward if dim == 1 else strided_heads
    report = check_backward(lambda z: (torch.tanh(z), torch.tanh(z)), wrong, [draw(2, 3, 4, 5)])
    assert {row.diagnosis.kind for row in report.failures} == {"strided"}


def test_slopes_between_the_ordinary_and_the_huge_are_fed():
    def backward(da, z):
        return da * torch.where((z > 5) & (z < 50), 0.0, 1.0)

    row = first_failure(check_backward(lambda z: (z * 1.0, z), backward, [draw(9, 8)]))
    assert row.case == "z of all sizes"


def test_a_lost_remainder_of_the_batch_is_found():
    def backward(dz, cache):  # in pieces of four
        x, W = cache
        whole = len(x) // 4 * 4
        return dz @ W, dz[:whole].T @ x[:whole], dz.sum(dim=0)

    row = first_failure(check_backward(linear, backward, [draw(8, 3), *LINEAR[1:]]))
    assert (row.case, row.name) == ("one example less", "dW")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lower_precision_without_an_oracle_is_judged_by_its_own_float64(dtype):
    """And quickly: differences look at float64 only."""

    class Linear(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, W):
            ctx.save_for_backward(x, W)
            return x @ W.T

        @staticmethod
        def backward(ctx, dz):
            x, W = ctx.saved_tensors
            dW = dz.T @ x
            if dz.dtype != torch.float64:
                dW[17, 23] += factor * dW.norm() / 40
            return dz @ W, dW

    example = [draw(30, 40), draw(40, 40, seed=1)]
    factor = 0.0
    report = check_function(Linear.apply, example, dtypes=[dtype])
    report.assert_passed()
    assert not report.kinks
    factor = 1.0
    row = first_failure(check_function(Linear.apply, example, dtypes=[dtype]))
    assert (row.name, row.index) == ("dW", (17, 23))
    assert row.origin.startswith("beside its float64, which differences confirm")


def test_an_output_without_a_gradient_is_no_output():
    check_function(lambda x: (x * x, x.detach()), [draw(5, 3)]).assert_passed()


def test_16_bits_do_not_let_a_gradient_of_zeros_pass():
    x = 3 + 0.01 * draw(50)
    report = check_backward(lambda x: (x.var(), x), lambda d, x: 0 * x, [x], dtypes=["bfloat16"], oracles=["autograd"])
    assert not report.passed


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: compare_gradients([draw(1)], {"v": draw(1)}), "actual is a list: give a dictionary by name"),
        (lambda: compare_gradients({"v": draw(1)}, {"v": draw(1)}, zeros=["v"]), "zeros is a list: give a dictionary"),
        (lambda: compare_gradients({"v": draw(1)}, {"v": draw(1)}, condition="x"), "condition is 'x': give a finite"),
        (lambda: compare_gradients({"v": draw(1)}, {"v": draw(1)}, condition=0.1), "condition is 0.1: give a finite"),
        (lambda: compare_gradients({"v": draw(1)}, {"v": draw(1)}, truth={"v": draw(2)}), "the truth of v is of shape"),
        (lambda: check_backward(relu, relu_backward, [draw(3)], outputs=0), "outputs is 0: give how many"),
        (lambda: check_backward(relu, None, [draw(3)]), "backward is a NoneType: give a function"),
        (lambda: check_backward(relu, relu_backward, [draw(3)], reference=3), "reference is a int: give a function"),
        (lambda: check_backward(relu, relu_backward, [draw(3)], seed="a"), "seed is 'a': give a whole number"),
        (lambda: check_backward(relu, relu_backward, [draw(3)], candidates=[draw(3)]), "candidates is a list: give a"),
        (lambda: check_backward(relu, relu_backward, [draw(3)], labels=["z"]), "labels is a list: give a dictionary"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_more_bad_input_gets_one_clear_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_layout_that_gives_garbage_is_not_excused_as_rounding():
    """As torch 2.15's batch norm on a CPU, whose backward reads an expanded weight as if it were contiguous."""

    class Scale(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w):
            ctx.save_for_backward(x, w)
            return x * w

        @staticmethod
        def backward(ctx, dy):
            x, w = ctx.saved_tensors
            garbage = w if w.is_contiguous() else w + 5
            return dy * garbage, (dy * x).sum(dim=0)

    report = check_function(Scale.apply, [draw(6, 5), draw(5, seed=1)])
    assert {(row.case, row.name) for row in report.failures} >= {("w expanded", "dx"), ("inputs sliced", "dx")}
    assert {row.diagnosis.kind for row in report.failures} == {"strided"}


@pytest.mark.parametrize("seed", [0, 5, None])
def test_check_step_leaves_the_random_state_of_its_caller(seed):
    """And with None it does not even set one for the two."""
    torch.manual_seed(7)
    drawn = []

    def step():
        drawn.append(torch.rand(()).item())
        return Step(torch.tensor(drawn[-1], dtype=torch.float64), {})

    report = check_step(step, step, (), seed=seed)
    after = torch.rand(()).item()
    torch.manual_seed(7)
    expected = [torch.rand(()).item() for _ in range(3)]
    if seed is None:
        assert [*drawn, after] == expected
        assert not report.passed
    else:
        assert drawn[0] == drawn[1]
        assert after == expected[0]
        assert report.passed
