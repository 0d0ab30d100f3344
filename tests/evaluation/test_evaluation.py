"""How good a learner is: a case done by hand, block by block, and what its outputs are called."""

import pytest
import torch

from tests.support.running import learner_of, resolved
from training import evaluation
from training.data import Dataset, Split
from training.evaluation import confidence, evaluate
from training.families.configure import configure
from training.learners.manual import ManualLearner


def ones_and_zeros():
    """A network that gives its two inputs back, and three examples, of which it gets two right."""
    x = torch.tensor([[1.0, 0.0], [0.25, 0.5], [0.0, 1.0]])
    split = Split(x, torch.tensor([0, 1, 0]))
    data = Dataset("npz", split, split, (2,), ("a", "b"), "")
    learner = learner_of(resolved(configure(hidden=(2,), activation=("identity",), epochs=1), data), data)
    for name, p in learner.parameters.items():
        p.copy_(torch.eye(2) if name.endswith("weight") else torch.zeros(2))
    assert isinstance(learner, ManualLearner)
    return learner, split


@pytest.mark.parametrize("block", [1, 2, 3, 100])
def test_evaluation_of_a_case_done_by_hand(block, monkeypatch):
    monkeypatch.setattr(evaluation.evaluation, "BLOCK", block)
    learner, split = ones_and_zeros()
    result = evaluate(learner, split, torch.float32)
    assert result is not None
    assert torch.equal(result.outputs, split.x)
    assert result.values["accuracy"] == pytest.approx(2 / 3)
    # ½‖a − y‖²: nothing for (1, 0) as 0; ½(¼² + ½²) for (¼, ½) as 1; ½(1 + 1) for (0, 1) as 0
    assert result.loss == pytest.approx((0 + 0.15625 + 1) / 3)


def test_evaluation_asks_before_every_block_whether_to_stop(monkeypatch):
    monkeypatch.setattr(evaluation.evaluation, "BLOCK", 1)
    learner, split = ones_and_zeros()
    for polls in range(3):
        answers = iter([False] * polls + [True])
        assert evaluate(learner, split, torch.float32, stop=lambda: next(answers)) is None  # noqa: B023
    assert evaluate(learner, split, torch.float32, stop=lambda: False) is not None


def test_what_outputs_are_called():
    z = torch.tensor([[0.0, 1.0, -2.0], [1e4, -1e4, 0.0]])
    probabilities, kind = confidence(z, "softmax-cross-entropy")
    assert kind == "probability"
    powers = z.double().exp().clamp(max=1e300)
    torch.testing.assert_close(probabilities, powers / powers.sum(1, True))
    probabilities, kind = confidence(z, "sigmoid-cross-entropy")
    assert kind == "probability"
    torch.testing.assert_close(probabilities, 1 / (1 + (-z.double()).exp()))
    for loss in ("quadratic", "squared-error"):
        activations, kind = confidence(z, loss)
        assert kind == "activation"
        assert torch.equal(activations, z.double())
