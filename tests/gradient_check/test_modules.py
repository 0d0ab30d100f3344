"""Modules that are checked as they are: with their own parameters, which are afterwards what they were."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from gallery.functions import HalfWhereFrozen
from gallery.right.modules import PLACES, RUN, Module
from gradient_check import check_function
from tests.support.checking import draw, first_failure, function_of

X = draw(5, 3)


def state(module):
    tensors = (*module.named_parameters(remove_duplicate=False), *module.named_buffers())
    hooks = lambda p: p._post_accumulate_grad_hooks  # noqa: E731
    of = lambda p: (id(p), p.data_ptr(), p.stride(), p.requires_grad, id(p.grad), len(hooks(p) or ()))  # noqa: E731
    return (
        {name: (of(p), p.tolist(), None if p.grad is None else p.grad.tolist()) for name, p in tensors},
        {name: ([*vars(m)], m.training, [*m._forward_hooks]) for name, m in module.named_modules()},
    )


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kind", RUN)
def test_a_module_runs_with_its_own_parameters_and_is_afterwards_what_it_was(kind, dtype):
    module = Module(kind)
    PLACES.clear()
    graph, before = module(X.clone().requires_grad_()).sum(), state(module)
    report = check_function(module, [X], dtypes=[dtype], cases=["layouts", "batch"])
    report.assert_passed()
    names = {row.name for row in report.rows if row.oracle == "differences" and not row.case}
    assert names == {"dx", "da.weight", "da.bias", "dnorm.weight", "dnorm.bias"}
    assert len(PLACES) == 2  # in float64 and in float32
    hidden = any(
        "where a.weight alone wants a gradient: NotAlone: a .backward() inside" in note for note in report.notes
    )
    assert hidden == (kind in ("reversible", "reentrant checkpoint"))
    assert check_function(module, [X], dtypes=[dtype], cases=[], order=2).passed == (not hidden)
    check_function(lambda x: module(x), [X], cases=[]).assert_passed()
    assert (state(module), module.calls) == (before, 1)
    graph.backward()
    assert state(module) != before
    assert first_failure(check_function(Module(kind, 1.5), [X], dtypes=[dtype], cases=[])).name == "da.weight"


def test_a_modules_gradient_is_asked_for_alone():
    row = first_failure(check_function(HalfWhereFrozen(3, 3).double(), [X], oracles=["differences"], cases=[]))
    assert (row.name, row.reason.split(":")[0]) == ("alone", "dx is another where x alone wants a gradient")


def test_parameters_may_share_storage_have_a_sparse_gradient_or_one_of_zero():
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).double()
    module[1].weight.data = module[0].weight.data
    check_function(module, [X], cases=[]).assert_passed()
    check_function(nn.Embedding(5, 3, sparse=True).double(), [torch.tensor([1, 4, 1])]).assert_passed()
    centred = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh()).double()
    report = check_function(centred, [draw(7, 3)], zeros=["0.bias"])
    report.assert_passed()
    assert {row.name for row in report.rows} >= {"dinput", "d0.weight", "d0.bias", "d1.weight", "d1.bias"}


@pytest.mark.parametrize("call", [2, 9, 20])
def test_an_exception_that_ends_the_check_leaves_the_module_as_it_was(call):
    module = Module(fails_at=call)
    before = state(module)
    with pytest.raises(KeyboardInterrupt):
        check_function(module, [X], dtypes=["float32"])
    assert (state(module), module.calls) == (before, 0)


def test_a_function_that_refuses_autograd_grad_is_asked_by_backward():
    bias = draw(3, seed=3).requires_grad_()
    bias.grad = torch.ones_like(bias)

    def function(x, W, scale=1.0):
        product = function_of(lambda x, W: (x @ W.T, (x, W)), lambda dz, c: (scale * dz @ c[1], dz.T @ c[0]))
        return checkpoint(product, x, W, use_reentrant=True) + bias

    report = check_function(function, [X, draw(3, 3, seed=1)])
    report.assert_passed()
    assert any("because torch.autograd.grad was refused: When use_reentrant=True" in note for note in report.notes)
    assert bias.grad.eq(1).all()
    assert first_failure(check_function(function, [X, draw(3, 3, seed=1), 1.5])).name == "dx"
