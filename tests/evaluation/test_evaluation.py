"""How good a learner is: what is measured of each task, a case done by hand, and what outputs are called."""

from math import exp, inf, log

import pytest
import torch

from tests.support.running import learner_of, resolved
from training import evaluation
from training.data import Dataset, Split, load
from training.evaluation import confidence, evaluate
from training.families.configure import configure
from training.tasks import CLASSIFICATION, NEXT_TOKEN, TASKS, Sums, task_of


def test_metrics_follow_from_sums():
    sums = Sums(cost=6.0, correct=3, targets=4)
    assert CLASSIFICATION.evaluate(sums) == {"loss": 1.5, "accuracy": 0.75}
    assert NEXT_TOKEN.evaluate(sums) == {"loss": 1.5, "perplexity": exp(1.5)}
    guess = Sums(cost=100 * log(27), correct=0, targets=100)
    assert NEXT_TOKEN.evaluate(guess)["perplexity"] == pytest.approx(27), "the number of tokens"
    assert NEXT_TOKEN.evaluate(Sums(cost=1e6, correct=0, targets=1))["perplexity"] == inf


def test_tags_and_their_order():
    values = {"loss": 1.0, "accuracy": 0.5}
    assert list(CLASSIFICATION.tags(values, values)) == ["loss/test", "accuracy/test", "accuracy/train"]
    assert CLASSIFICATION.tags(values, {"loss": 2.0, "accuracy": 0.75})["accuracy/train"] == 0.75
    assert [*CLASSIFICATION.hparams(values).items()] == [("hparam/accuracy", 0.5), ("hparam/loss", 1.0)]
    assert NEXT_TOKEN.hparams({"loss": 1.0, "perplexity": 2.0}) == {"hparam/loss": 1.0, "hparam/perplexity": 2.0}


def test_which_is_better():
    assert CLASSIFICATION.is_better(0.9, 0.8)
    assert not CLASSIFICATION.is_better(0.8, 0.8)
    assert not CLASSIFICATION.is_better(0.0, CLASSIFICATION.worst)
    assert NEXT_TOKEN.is_better(0.8, 0.9)
    assert not NEXT_TOKEN.is_better(0.8, 0.8)
    assert NEXT_TOKEN.is_better(1e300, NEXT_TOKEN.worst)


def test_every_task_is_whole_and_points_are_classified():
    for task in TASKS.values():
        assert task.headline in task.metrics
        assert task.metrics[0].name == "loss", "evaluation, watch and schedules read it"
        assert len({metric.name for metric in task.metrics}) == len(task.metrics)
    assert task_of(load("points")) is CLASSIFICATION


def ones_and_zeros():
    """A network that gives its two inputs back, and three examples, of which it gets two right."""
    split = Split(torch.tensor([[1.0, 0.0], [0.25, 0.5], [0.0, 1.0]]), torch.tensor([0, 1, 0]))
    data = Dataset("npz", split, split, (2,), ("a", "b"), "")
    learner = learner_of(resolved(configure(hidden=(2,), activation=("identity",), epochs=1), data), data)
    for name, p in learner.parameters.items():
        p.copy_(torch.eye(2) if name.endswith("weight") else torch.zeros(2))
    return learner, split


@pytest.mark.parametrize("block", [1, 2, 3, 100])
def test_evaluation_of_a_case_done_by_hand(block, monkeypatch):
    monkeypatch.setattr(evaluation.evaluation, "BLOCK", block)
    learner, split = ones_and_zeros()
    result = evaluate(learner, split, torch.float32)
    assert torch.equal(result.outputs, split.x)
    assert result.values["accuracy"] == pytest.approx(2 / 3)
    # ½‖a − y‖²: nothing for (1, 0) as 0; ½(¼² + ½²) for (¼, ½) as 1; ½(1 + 1) for (0, 1) as 0
    assert result.loss == pytest.approx((0 + 0.15625 + 1) / 3)


def test_evaluation_asks_before_every_block_whether_to_stop(monkeypatch):
    monkeypatch.setattr(evaluation.evaluation, "BLOCK", 1)
    learner, split = ones_and_zeros()
    for polls in range(3):
        answers = [True] + [False] * polls
        assert evaluate(learner, split, torch.float32, stop=answers.pop) is None
        assert not answers
    assert evaluate(learner, split, torch.float32, stop=lambda: False) is not None


def test_what_outputs_are_called():
    z = torch.tensor([[0.0, 1.0, -2.0], [1e4, -1e4, 0.0]])
    powers = z.double().exp().clamp(max=1e300)
    likely = {"softmax": powers / powers.sum(1, True), "sigmoid": 1 / (1 + (-z.double()).exp())}
    for name, expected in likely.items():
        probabilities, kind = confidence(z, f"{name}-cross-entropy")
        assert kind == "probability"
        torch.testing.assert_close(probabilities, expected)
    for loss in ("quadratic", "squared-error"):
        activations, kind = confidence(z, loss)
        assert kind == "activation"
        assert torch.equal(activations, z.double())
