"""The contracts carry more than the perceptron: a convolution with batch norm and a shared weight, a recurrent cell.

Both are checked exactly as the perceptron is. What they add: buffers that a step changes, a weight used twice, a module
called several times, noise, a carried state, a gradient that is zero in exact arithmetic, arguments that are not
differentiable.
"""

import both_ways
import pytest
import torch
import toys.layers
from both_ways import (
    LOSSES,
    TWIN_LOSSES,
    assert_central_differences_agree,
    assert_not_trivial,
    by_autograd,
    by_hand,
    by_twin,
)
from problems import random_batches, rates, relative_difference
from torch import Tensor, nn
from toys.layers import batch_norm, conv2d, recurrent_cell
from toys.problems import BATCH, CONV, LOSS, PROBLEMS, RECURRENT, Problem

from gradient_check import check_backward, compare_gradients
from training.learners.checked import MAX_ERROR, GradientMismatch

LAYERS = list(both_ways.layer_examples(toys.layers))
each_problem = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)


def summands(problem: Problem, gradients: dict[str, Tensor]) -> dict[str, float]:
    """For each gradient that is zero in exact arithmetic, the size of what cancels in it."""
    zeros = getattr(problem.model, "zeros", {})
    return {f"∂C/∂{name}": sum(gradients[f"δ {d}"].norm().item() for d in deltas) for name, deltas in zeros.items()}


@pytest.mark.parametrize(
    ("forward", "backward", "arguments", "fixed"), [e[1:] for e in LAYERS], ids=[e[0] for e in LAYERS]
)
def test_every_layer_passes_the_check(forward, backward, arguments, fixed):
    check_backward(forward, backward, arguments, not_differentiable=fixed).assert_passed()


def test_every_layer_is_found():
    assert {id.rpartition("-")[0] for id, *_ in LAYERS} == {
        "batch_norm", "conv2d", "linear", "mean_pool", "recurrent_cell"
    }  # fmt: skip


def batch_norm_without(term: str):
    def backward(dy, cache):
        xhat, rstd, gamma = cache
        dxhat = batch_norm.per_channel(gamma) * dy
        mean = 0 if term == "mean" else dxhat.mean(dim=(0, 2, 3), keepdim=True)
        product = 0 if term == "variance" else xhat * (dxhat * xhat).mean(dim=(0, 2, 3), keepdim=True)
        dz = batch_norm.per_channel(rstd) * (dxhat - mean - product)
        return dz, (dy * xhat).sum(dim=(0, 2, 3)), dy.sum(dim=(0, 2, 3))

    return backward


@pytest.mark.parametrize("term", ["mean", "variance"])
def test_a_batch_norm_that_forgets_a_term_is_rejected(term):
    for arguments in batch_norm.examples(torch.Generator().manual_seed(0)):
        fixed = batch_norm.not_differentiable
        check_backward(
            batch_norm.forward, batch_norm_without("none"), arguments, not_differentiable=fixed
        ).assert_passed()
        report = check_backward(batch_norm.forward, batch_norm_without(term), arguments, not_differentiable=fixed)
        assert [row.name for row in report.failures] == ["dz"]


def test_batch_norm_is_torchs_in_training_and_in_evaluation():
    for z, gamma, beta, mean, var in batch_norm.examples(torch.Generator().manual_seed(0)):
        theirs_mean, theirs_var = mean.clone(), var.clone()
        expected = nn.functional.batch_norm(z, theirs_mean, theirs_var, gamma, beta, training=True)
        y, _, new_mean, new_var = batch_norm.forward(z, gamma, beta, mean, var)
        compare_gradients(
            {"y": y, "mean": new_mean, "var": new_var}, {"y": expected, "mean": theirs_mean, "var": theirs_var}
        ).assert_passed()
        evaluated = nn.functional.batch_norm(z, mean, var, gamma, beta, training=False)
        compare_gradients({"y": batch_norm.evaluate(z, gamma, beta, mean, var)}, {"y": evaluated}).assert_passed()


@each_problem
def test_equals_autograd_through_the_same_forward(problem):
    model, params, (x, y) = problem.model, problem.params, problem.batch
    for loss in LOSSES.values():
        expected = by_autograd(model, loss, params, x, y, **problem.pass_on)
        actual = by_hand(model, loss, params, x, y, **problem.pass_on)
        assert_not_trivial(expected)
        compare_gradients(actual, expected, zeros=summands(problem, actual)).assert_passed()


@each_problem
def test_equals_the_twin(problem):
    params, (x, y) = problem.params, problem.batch
    for name, loss in LOSSES.items():
        expected = by_twin(problem.twin(problem.model), TWIN_LOSSES[name], params, x, y, **problem.pass_on)
        actual = by_hand(problem.model, loss, params, x, y, **problem.pass_on)
        assert_not_trivial(expected)
        compare_gradients(actual, expected, zeros=summands(problem, actual)).assert_passed()


@each_problem
def test_in_single_precision_is_as_close_to_the_truth_as_the_twin_is(problem):
    params, (x, y), pass_on = problem.params, problem.batch, problem.pass_on
    single = {name: tensor.float() for name, tensor in params.items()}
    exact = {name: tensor.double() for name, tensor in single.items()}
    state = {name: t.float() if t.is_floating_point() else t for name, t in pass_on["state"].items()}
    noise = {"noise": pass_on["noise"].float()} if problem.noisy else {}
    actual = by_hand(problem.model, LOSSES[LOSS], single, x.float(), y, state=state, **noise)
    expected = by_twin(problem.twin(problem.model), TWIN_LOSSES[LOSS], single, x.float(), y, state=state, **noise)
    state = {name: t.double() if t.is_floating_point() else t for name, t in state.items()}
    noise = {"noise": pass_on["noise"]} if problem.noisy else {}
    truth = by_twin(problem.twin(problem.model), TWIN_LOSSES[LOSS], exact, x.float().double(), y, state=state, **noise)
    compare_gradients(actual, expected, truth=truth, zeros=summands(problem, actual)).assert_passed()


@each_problem
def test_equals_central_differences(problem):
    assert_central_differences_agree(problem.model, LOSSES[LOSS], problem.params, *problem.batch, **problem.pass_on)


def test_every_call_of_a_shared_layer_has_a_delta_of_its_own():
    x, y = PROBLEMS["convolution"].batch
    conv = by_hand(CONV, LOSSES[LOSS], PROBLEMS["convolution"].params, x, y)
    assert {
        "δ conv[0]",
        "δ conv[1]",
        "δ norm1",
        "δ norm2",
        "δ tanh[0]",
        "δ tanh[1]",
        "δ pool",
        "δ linear",
    } < conv.keys()
    x, y = PROBLEMS["recurrent"].batch
    recurrent = by_hand(RECURRENT, LOSSES[LOSS], PROBLEMS["recurrent"].params, x, y)
    assert {f"δ cell[{t}]" for t in range(6)} < recurrent.keys()


@pytest.mark.parametrize("name", ["conv.weight", "cell.weight_h"])
def test_a_shared_weight_that_forgets_a_use_is_rejected(name, monkeypatch):
    """The layer's weight gradient is dropped in the call that backward makes first, the last use of the weight."""
    layer, position = (conv2d, 1) if name == "conv.weight" else (recurrent_cell, 3)
    problem = PROBLEMS["convolution" if name == "conv.weight" else "recurrent"]
    right, calls = layer.backward, []

    def forgetful(*arguments, **options):
        calls.append(None)
        gradients = list(right(*arguments, **options))
        if len(calls) == 1:
            gradients[position] = torch.zeros_like(gradients[position])
        return tuple(gradients)

    monkeypatch.setattr(layer, "backward", forgetful)
    params, (x, y) = problem.params, problem.batch
    expected = by_autograd(problem.model, LOSSES[LOSS], params, x, y, **problem.pass_on)
    actual = by_hand(problem.model, LOSSES[LOSS], params, x, y, **problem.pass_on)
    report = compare_gradients(actual, expected, zeros=summands(problem, actual))
    assert [row.name for row in report.failures] == [f"∂C/∂{name}"]


def test_the_gradient_of_a_bias_before_batch_norm_is_rounding():
    problem = PROBLEMS["convolution"]
    params, (x, y) = problem.params, problem.batch
    actual, expected = (f(CONV, LOSSES[LOSS], params, x, y) for f in (by_hand, by_autograd))
    undeclared = compare_gradients(actual, expected)
    assert [row.name for row in undeclared.failures] == ["∂C/∂conv.bias"]
    (size,) = summands(problem, actual).values()
    assert actual["∂C/∂conv.bias"].norm() < 1e-14 * size
    wrong = actual | {"∂C/∂conv.bias": actual["∂C/∂conv.bias"] + 1e-9}
    assert not compare_gradients(wrong, expected, zeros=summands(problem, actual)).passed


@each_problem
@pytest.mark.parametrize("init", ["scaled-normal", "xavier"], ids=["biases drawn", "biases 0"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_lock_step_of_twenty_steps(problem, dtype, init):
    learner = problem.checked(dtype, init, momentum=0.9, l2=1e-3)
    start = learner.state_dict()["model"]
    learner.advance(random_batches(20, BATCH, 90), rates(20, 0.05))
    assert learner.steps == 20
    assert learner.metrics[MAX_ERROR] < {torch.float64: 1e-12, torch.float32: 1e-3}[dtype]
    end = learner.state_dict()["model"]
    moved = {name for name in start if not torch.equal(start[name], end[name])}
    assert moved | getattr(problem.model, "zeros", {}).keys() == start.keys()


@each_problem
def test_a_mistake_in_lock_step_is_named(problem):
    learner = problem.checked(torch.float64)
    learner.advance(random_batches(2, BATCH, 90), rates(2, 0.05))
    layer = "conv" if problem.model is CONV else "cell"
    label = "CN2, conv, ∂C/∂W" if layer == "conv" else "RN2, cell, ∂C/∂weight_h"

    class Wrong(type(problem.model)):
        def backward(self, params, caches, d_output, gradients, **options):
            dx = super().backward(params, caches, d_output, gradients, **options)
            name = "conv.weight" if layer == "conv" else "cell.weight_h"
            gradients[name] = gradients[name] * 1.001
            return dx

    learner.manual.model = Wrong(**vars(problem.model))
    with pytest.raises(GradientMismatch, match=f"step 3: {label}: at"):
        learner.advance(random_batches(2, BATCH, 90), rates(2, 0.05))


@pytest.mark.slow
@each_problem
def test_two_hundred_steps_apart_end_at_the_same_parameters_and_buffers(problem):
    manual, reference = problem.learners(torch.float64, momentum=0.9)
    batches = random_batches(200, BATCH, 90)
    losses = manual.advance(batches, rates(200, 0.02))
    torch.testing.assert_close(losses, reference.advance(batches, rates(200, 0.02)), rtol=1e-9, atol=0)
    mine, theirs = manual.state_dict()["model"], reference.state_dict()["model"]
    assert relative_difference(mine, theirs) < 1e-9
    for name in theirs:
        assert mine[name].dtype == theirs[name].dtype
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-8, atol=0)


def test_batches_are_counted_and_statistics_are_kept():
    manual, reference = PROBLEMS["convolution"].learners(torch.float64)
    for learner in (manual, reference):
        learner.advance(random_batches(5, BATCH, 90), rates(5, 0.05))
    mine, theirs = manual.state_dict()["model"], reference.state_dict()["model"]
    assert mine["norm1.num_batches_tracked"].item() == theirs["norm1.num_batches_tracked"].item() == 5
    assert list(mine) == [*manual.parameters, *(name for name in mine if name not in manual.parameters)]
    assert mine.keys() == theirs.keys()


@each_problem
def test_evaluation_uses_the_state_and_does_not_change_it(problem):
    manual, reference = problem.learners(torch.float64)
    for learner in (manual, reference):
        learner.advance(random_batches(5, BATCH, 90), rates(5, 0.05))
    before = manual.state_dict()["model"]
    split = manual.train
    C, output = manual.evaluate(split.x, split.y)
    C_reference, output_reference = reference.evaluate(split.x, split.y)
    compare_gradients({"C": C, "out": output}, {"C": C_reference, "out": output_reference}).assert_passed()
    after = manual.state_dict()["model"]
    assert all(torch.equal(before[name], after[name]) for name in before)
    one_by_one = torch.cat([manual.evaluate(split.x[i : i + 1], split.y[i : i + 1])[1] for i in range(9)])
    torch.testing.assert_close(one_by_one, output[:9], rtol=1e-11, atol=1e-13)


@each_problem
def test_backpropagate_leaves_buffers_alone(problem):
    for learner in problem.learners(torch.float64):
        before = learner.state_dict()["model"]
        result = learner.backpropagate(learner.train.x[:BATCH], learner.train.y[:BATCH])
        after = learner.state_dict()["model"]
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert any(not torch.equal(result.buffers[name], before[name]) for name in result.buffers)


@each_problem
def test_a_state_with_buffers_passes_strictly_from_one_to_the_other(problem):
    manual, reference = problem.learners(torch.float64, momentum=0.9)
    batches = random_batches(20, BATCH, 90)
    manual.advance(batches[:10], rates(10, 0.05))
    reference.load_state_dict(manual.state_dict())
    for learner in (manual, reference):
        learner.advance(batches[10:], rates(10, 0.05))
    assert relative_difference(manual.state_dict()["model"], reference.state_dict()["model"]) < 1e-11

    state = reference.state_dict()
    buffer = next(name for name in manual.buffers)
    del state["model"][buffer]
    for learner in (manual, reference):
        with pytest.raises(ValueError, match=buffer):
            learner.load_state_dict(state)


def test_noise_of_a_step_is_the_same_again_after_a_resume():
    problem = PROBLEMS["recurrent with dropout"]
    whole, _ = problem.learners(torch.float64)
    batches = random_batches(8, BATCH, 90)
    losses = whole.advance(batches, rates(8, 0.05))
    first, _ = problem.learners(torch.float64)
    first.advance(batches[:4], rates(4, 0.05))
    second, _ = problem.learners(torch.float64)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.advance(batches[4:], rates(4, 0.05)), losses[4:])
    quiet, _ = PROBLEMS["recurrent"].learners(torch.float64)
    assert not torch.equal(quiet.advance(batches, rates(8, 0.05)), losses)


def test_a_carried_state_matters():
    problem = PROBLEMS["recurrent"]
    params, (x, y) = problem.params, problem.batch
    with_state = by_hand(RECURRENT, LOSSES[LOSS], params, x, y, **problem.pass_on)
    without = by_hand(RECURRENT, LOSSES[LOSS], params, x, y)
    assert not torch.allclose(with_state["C"], without["C"])
    assert_not_trivial({"∂C/∂cell.weight_h": with_state["∂C/∂cell.weight_h"]})
