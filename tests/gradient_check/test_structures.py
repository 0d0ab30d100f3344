"""What may be given: tensors inside structures, keyword arguments, objects that hold tensors, complex numbers."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from gallery.complexes import POWER, RIGHT, Z
from gallery.right.structures import EXAMPLE, IDS, SCALE, Spectral, State, backward, forward, nested
from gradient_check import check_backward, check_function
from tests.support.checking import draw, first_failure


def judged(report):
    return {row.name for row in report.rows if row.oracle in ("autograd", "reference") and not row.case}


CHECKS = (partial(check_backward, forward, backward), partial(check_function, nested))


@pytest.mark.parametrize("check", CHECKS, ids=["backward", "function"])
def test_tensors_in_structures_and_keywords_are_arguments_like_others(check):
    report = check(EXAMPLE, kwargs=SCALE, reference=nested)
    report.assert_passed()
    assert judged(report) == {"output", "dxs[0]", "dxs[1]", "dbatch['x']", "dstate.h", "dstate.c", "dscale"}


def test_the_name_of_an_argument_covers_its_leaves():
    options = {"kwargs": SCALE, "cases": []}
    report = check_backward(forward, lambda dy, c: backward(dy, c, 1.5), EXAMPLE, labels={"state": "δ"}, **options)
    assert [(row.name, row.label) for row in report.failures] == [("dstate.c", "δ.c")]
    only_h = lambda dy, cache: State(backward(dy, cache)[2].h, None)  # noqa: E731
    fixed = ["xs", "batch['x']", "state.c", "scale"]
    report = check_backward(forward, only_h, EXAMPLE, not_differentiable=fixed, **options)
    report.assert_passed()
    assert judged(report) == {"dstate.h"}
    unused = lambda y, xs: (y + 0 * xs[0] * xs[1], None)  # noqa: E731
    check_backward(unused, lambda dy, _: (dy, [0 * dy, 0 * dy]), [draw(3), EXAMPLE[0]], zeros=["xs"]).assert_passed()


RETURNED = {
    "none is due": lambda xs, batch, *rest: (xs, {"x": batch["x"], "ids": batch["x"]}, *rest),
    "dxs for xs[0], xs[1]: return a gradient of the same structure": lambda xs, *rest: (xs[0], *rest),
    "dxs[0], dxs[1], dxs[2] for xs[0], xs[1]": lambda xs, *rest: ([*xs, xs[0]], *rest),
    "3 gradients for the 4 arguments dxs, dbatch, dstate, dscale": lambda *found: found[:3],
    "dstate, dscale; none is due for batch['ids'] (torch.int64)": lambda *found: (*found, None),
    "a str for xs[1], where a gradient": lambda xs, *rest: ([xs[0], "dx"], *rest),
    "torch.complex128 for xs[1], which is torch.float64": lambda xs, *rest: ([xs[0], xs[1] + 0j], *rest),
}


@pytest.mark.parametrize("said", RETURNED)
def test_a_backward_that_returns_another_structure_is_wrong(said):
    returned = lambda dy, cache: RETURNED[said](*backward(dy, cache))  # noqa: E731
    row = first_failure(check_backward(forward, returned, EXAMPLE, kwargs=SCALE))
    assert (row.name, said in row.reason) == ("gradients", True), row.reason


def test_what_lies_in_an_object_is_noted_and_a_missing_leaf_is_wrong():
    held = SimpleNamespace(weight=draw(3))
    report = check_function(lambda x, cfg, n: x * cfg.weight, [draw(3), held, SimpleNamespace(ids=IDS)], cases=[])
    note = "the argument cfg (SimpleNamespace) holds tensors that were not differentiated: give them as arguments"
    assert note in report.notes
    assert "argument n " not in str(report)
    report = check_backward(lambda xs: (xs[0] * xs[1], xs), lambda dy, xs: [dy * xs[1]], EXAMPLE[:1])
    assert [(row.name, row.diagnosis.kind) for row in report.failures] == [("dxs[1]", "missing")]


def test_a_module_may_have_inputs_in_structures_and_complex_parameters():
    module = Spectral()
    before = module.weight.detach().clone()
    report = check_function(
        module, [[draw(5, 7), draw(5, 7, seed=1)]], kwargs={"weight": draw()}, dtypes=["float32"], cases=["batch"]
    )
    report.assert_passed()
    names = {row.name for row in report.rows if row.oracle == "differences" and not row.case}
    assert names == {"dxs[0]", "dxs[1]", "dweight", "dself.weight"}
    assert module.weight.equal(before)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", RIGHT)
def test_right_gradients_of_complex_numbers_pass(name, dtype):
    forward, backward, example = RIGHT[name]
    check_backward(forward, backward, example, dtypes=[dtype]).assert_passed()


def test_a_complex_gradient_is_reported_as_it_is_for_its_author():
    wrong = lambda dy, z: 2 * dy * torch.complex(z.real, 3 * z.imag)  # noqa: E731
    report = check_backward(POWER.forward, wrong, [Z], cases=[])
    row = report.failures[0]
    assert (row.shape, len(row.index)) == ((5, 3), 2)
    assert row.reason.startswith(f"at {list(row.index)} (imaginary part) it is")
    for dtype in (torch.float64, torch.complex64):
        report = check_backward(POWER.forward, lambda dy, z, to=dtype: (2 * dy * z.real).to(to), [Z])
        assert report.failures[0].reason == f"backward returned {dtype} for z, which is torch.complex128"
    cached = lambda z, w: (torch.einsum("bi,ij", z, w), (torch.tensor(torch.inf),))  # noqa: E731
    report = check_function(lambda z, w: z @ w, [Z, Z.mT], reference=cached)
    report.assert_passed()
    assert judged(report) == {"output", "dz", "dw"}
    assert not [note for note in report.notes if "axis 2" in note]
