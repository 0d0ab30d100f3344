"""Of every network each gradient, every δ, dx, the buffers and the memory, against every oracle."""

from itertools import combinations, product

import pytest
import torch

from gradient_check.differences import measure
from gradient_check.verdict import judge_measured
from manual_backprop.layers.activations import ACTIVATIONS
from manual_backprop.tape import Tape
from tests.support import networks
from tests.support.both_ways import LOSSES, differ
from tests.support.networks import PROBLEMS, TEXTS, WITHOUT_DROPOUT, each, stacked

each_loss = pytest.mark.parametrize("loss", LOSSES)


def test_the_problems_cover_what_there_is():
    for i, j in combinations(range(4), 2):
        values = [{case[k] for case in networks.CASES} for k in (i, j)]
        assert {(case[i], case[j]) for case in networks.CASES} == set(product(*values))
    assert {case[1] for case in networks.CASES} == {*ACTIVATIONS, "mixed"}
    models = [problem.model for problem in networks.CNNS.values()]
    assert {model.shape[0] for model in models} == {1, 2, 3} == {p.model.shape[0] for p in networks.LENETS.values()}
    assert {model.blocks for model in models} == {0, 1, 2}
    costs = {"quadratic", "squared-error", "sigmoid-cross-entropy", "softmax-cross-entropy", "smoothed"}
    for problems in (networks.MLPS, networks.CNNS, networks.LENETS):
        assert {problem.loss for problem in problems.values()} >= costs
        assert {problem.batch % 2 for problem in problems.values()} == {0, 1}
        assert min(problem.batch for problem in problems.values()) == 1
    assert {loss for _, _, loss in (name.partition(", ") for name in TEXTS)} == set(LOSSES)
    last = {tuple(size >> len(m.channels) for size in m.shape[1:]) for m in models}
    assert {(1, 1), (3, 2)} <= last
    assert {size % 2 for m in models for size in m.shape[1:]} == {0, 1}


@each(PROBLEMS)
def test_equals_autograd_through_the_same_forward_and_the_twin(problem):
    problem = problem.judging()
    mine = problem.by_hand()
    problem.assert_agrees(mine, problem.by_autograd())
    problem.assert_agrees(mine, problem.by_twin())


@pytest.mark.sweep(3)
@each(PROBLEMS)
def test_in_evaluation_mode_it_equals_autograd_and_the_twin(problem):
    problem = problem.judging()
    mine, theirs = problem.by_hand(training=False), problem.by_twin(training=False)
    problem.assert_agrees(mine, problem.by_autograd(training=False))
    compared = {name: mine[name] for name in mine if name in theirs or not name.startswith("memory ")}
    problem.assert_agrees(compared, theirs)  # keys and values are remembered by hand alone, to generate with
    for name, buffer in problem.buffers.items():
        assert torch.equal(mine[f"buffer {name}"], buffer)
    if problem.buffers or problem.drops:
        assert differ(mine["C"], problem.by_hand()["C"])
    if problem.drops:
        without, _ = problem.dropped(0.0)
        assert torch.equal(mine["C"], without.by_hand(training=False)["C"])


# One in three: autograd, by which each was judged above, goes through the same calls.
TO_MOVE = {name: problem for i, (name, problem) in enumerate(PROBLEMS.items()) if i % 3 == 0 or name in TEXTS}


@pytest.mark.sweep(3)
@each(TO_MOVE, fast=2, rest="long")
def test_equals_central_differences(problem):
    problem = problem.judging()
    loss, y, given, gradients = networks.COSTS[problem.loss][0], problem.data[1], problem.given, problem.by_hand()
    pass_on = problem.pass_on

    def cost(moved):
        output = problem.model.forward(moved, moved["x"], Tape(training=True, records=False, **pass_on))
        return loss.forward(output, y)[0].view(1)

    for name in (*problem.params, *(["x"] if "dx" in gradients else [])):
        gradient, generator = gradients["dx" if name == "x" else f"∂C/∂{name}"], torch.Generator().manual_seed(0)
        slopes = measure(lambda v, at=name: cost(given | {at: v}), given[name], gradient, generator=generator)
        row = judge_measured(slopes, name, name, "differences")
        assert row.verdict == "ok", row


def agrees_in(dtype, problem):
    problem = problem.judging(dtype)
    mine = problem.by_hand(dtype=dtype)
    problem.assert_agrees(mine, problem.by_twin(dtype=dtype), truth=problem.by_twin(rounded=dtype))


@pytest.mark.sweep(4)
@each(WITHOUT_DROPOUT | TEXTS | networks.OF_FAMILIES)
def test_in_single_precision_it_is_as_close_to_the_truth_as_the_twin_is(problem):
    agrees_in(torch.float32, problem)


# With blocks hardly any draw can judge. Those are compared by lock step, which measures what rounding does.
@pytest.mark.sweep(4)
@each({name: problem for name, problem in WITHOUT_DROPOUT.items() if not getattr(problem.model, "blocks", 0)})
def test_in_bfloat16_it_is_as_close_to_the_truth_as_the_twin_is(problem):
    agrees_in(torch.bfloat16, problem)


def transposed(x):
    return x.T.contiguous().T


def strided(x):
    wide = torch.zeros(2 * x.shape[0], 3 * x.shape[1], dtype=x.dtype)
    wide[::2, 1::3] = x
    return wide[::2, 1::3]


@pytest.mark.sweep(4)
@pytest.mark.parametrize("lay_out", [transposed, strided])
@each(WITHOUT_DROPOUT | TEXTS, rest="long")
def test_x_may_lie_in_memory_as_it_likes(problem, lay_out):
    problem = problem.judging()
    given, _ = problem.data
    x = lay_out(given)
    problem.assert_agrees(problem.by_hand(x), problem.by_twin())
    assert torch.equal(x, given)


SAME_ROWS = ("LeNet-5, as published", "CNN, no block", "CNN, gelu by tanh", "cell, quadratic", "block, quadratic")


@each({"MLP": stacked(3, "tanh", "quadratic")} | {name: PROBLEMS[name] for name in SAME_ROWS})
def test_every_example_may_be_the_same_row_of_memory(problem):
    x, _ = problem.data
    expanded = x[:1].expand(len(x), -1)
    assert expanded.stride(0) == 0
    problem.assert_agrees(problem.by_hand(expanded), problem.by_twin(expanded.contiguous()))


@each_loss
def test_a_count_other_than_the_batch_divides_every_gradient(loss):
    problem = stacked(3, "tanh", loss)
    problem.assert_agrees(problem.by_hand(count=20), problem.by_autograd(count=20))


@each_loss
def test_gradients_of_parts_of_a_batch_add_up_to_the_whole(loss):
    problem = stacked(3, "sigmoid", loss)
    x, y = problem.data
    whole = problem.by_hand()
    parts = [problem.by_hand(x[rows], y[rows], count=7) for rows in (slice(0, 4), slice(4, 7))]
    summed = {name: parts[0][name] + parts[1][name] for name in whole if name == "C" or name.startswith("∂C/∂")}
    stacked_up = {name: torch.cat([part[name] for part in parts]) for name in whole if name not in summed}
    problem.assert_agrees({**summed, **stacked_up}, whole)
