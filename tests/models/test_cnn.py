"""The residual network's block, and where a mistake in it shows."""

import pytest
import torch
from torch import Tensor

from gradient_check import compare_gradients
from manual_backprop.layers import batch_norm, max_pool2d
from manual_backprop.models.cnn import CNN
from manual_backprop.tape import Tape
from tests.support.both_ways import LOSSES, assert_not_trivial, by_hand
from tests.support.networks import CNNS, Problem, pictures


def without_effect(problem: Problem) -> dict[str, Tensor]:
    """Parameters at which every block adds nothing, neither to what comes in nor to its gradient."""
    zero = (".conv2.weight", ".norm2.weight", ".norm2.bias")
    return {n: torch.zeros_like(t) if n.endswith(zero) else t for n, t in problem.params.items()}


def around_the_blocks() -> None:
    """Blocks that add nothing hand the gradient on as if they were not there: relu(relu(x) + 0) = relu(x)."""
    problem = pictures(CNN((2, 9, 7), 3, (5, 4), 2, "relu"), "softmax-cross-entropy", 5)
    bare, params = CNN((2, 9, 7), 3, (5, 4), 0, "relu"), without_effect(problem)
    x, y = problem.data
    expected = by_hand(bare, LOSSES[problem.loss], params, x, y, buffers=problem.buffers)
    actual = by_hand(problem.model, LOSSES[problem.loss], params, x, y, buffers=problem.buffers)
    assert_not_trivial(expected)
    expected = {name: tensor for name, tensor in expected.items() if "block" not in name}
    shared = {name: actual[name] for name in expected}
    for stage in ("stage1", "stage2"):  # the block's relu cuts what comes back to the stage's
        expected[f"δ {stage}.norm.a"] = expected[f"δ {stage}.norm"]
    compare_gradients(shared, expected).assert_passed()
    for name in bare.shapes:
        assert torch.equal(actual[f"∂C/∂{name}"], expected[f"∂C/∂{name}"])
    assert not any(actual[f"δ {stage}.block{k}.conv1"].any() for stage in ("stage1", "stage2") for k in (1, 2))


def forget_the_way_around(self: Tape, label: str, *gradients: Tensor) -> Tensor:
    """Tape.add, which is RS1: what came back through the block, without dy."""
    return gradients[-1].clone()


def test_a_block_that_adds_nothing_passes_the_gradient_around() -> None:
    around_the_blocks()


@pytest.mark.slow
def test_a_block_without_its_way_around_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tape, "add", forget_the_way_around)
    with pytest.raises(AssertionError):
        around_the_blocks()
    problem = CNNS["two blocks"]
    report = compare_gradients(problem.by_hand(), problem.by_twin())
    names = [row.name for row in report.failures]
    assert names[0] == "dx"
    assert not any("stage2.block2" in name or "linear" in name for name in names)
    assert {f"δ stage{s}.norm" for s in (1, 2)} <= set(names)


@pytest.mark.slow
def test_gradients_swapped_or_sent_elsewhere_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = CNNS["two blocks"]
    right_norm, right_pool = batch_norm.backward, max_pool2d.backward
    expected = problem.by_twin()

    def swapped(dy: Tensor, cache: batch_norm.Cache) -> tuple[Tensor, Tensor, Tensor]:
        dx, dgamma, dbeta = right_norm(dy, cache)
        return dx, dbeta, dgamma

    def elsewhere(dy: Tensor, cache: max_pool2d.Cache) -> Tensor:
        return right_pool(dy, cache).flip(-1)

    with monkeypatch.context() as patch:
        patch.setattr(batch_norm, "backward", swapped)
        failures = {row.name for row in compare_gradients(problem.by_hand(), expected).failures}
    norms = [name for name, shape in problem.model.shapes.items() if len(shape) == 1 and "norm" in name]
    assert failures == {f"∂C/∂{name}" for name in norms}
    with monkeypatch.context() as patch:
        patch.setattr(max_pool2d, "backward", elsewhere)
        failures = {row.name for row in compare_gradients(problem.by_hand(), expected).failures}
    assert {"δ stage2.conv", "∂C/∂stage2.conv.weight", "dx"} <= failures
    assert "δ stage2.pool" not in failures
