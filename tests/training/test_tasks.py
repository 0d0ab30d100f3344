"""What is measured of each task, and which of it decides."""

from math import exp, inf, log

import pytest

from training.data import load
from training.tasks import CLASSIFICATION, NEXT_TOKEN, TASKS, Sums, task_of


def test_metrics_follow_from_sums():
    sums = Sums(cost=6.0, correct=3, targets=4)
    assert CLASSIFICATION.evaluate(sums) == {"loss": 1.5, "accuracy": 0.75}
    assert NEXT_TOKEN.evaluate(sums) == {"loss": 1.5, "perplexity": exp(1.5)}


def test_the_perplexity_of_a_guess_is_the_number_of_tokens():
    guess = Sums(cost=100 * log(27), correct=0, targets=100)
    assert NEXT_TOKEN.evaluate(guess)["perplexity"] == pytest.approx(27)
    assert NEXT_TOKEN.evaluate(Sums(cost=1e6, correct=0, targets=1))["perplexity"] == inf


def test_tags_and_their_order():
    values = {"loss": 1.0, "accuracy": 0.5}
    assert list(CLASSIFICATION.tags(values, values)) == ["loss/test", "accuracy/test", "accuracy/train"]
    assert CLASSIFICATION.tags(values, {"loss": 2.0, "accuracy": 0.75})["accuracy/train"] == 0.75
    assert CLASSIFICATION.hparams(values) == {"hparam/accuracy": 0.5, "hparam/loss": 1.0}
    assert list(CLASSIFICATION.hparams(values)) == ["hparam/accuracy", "hparam/loss"]
    assert NEXT_TOKEN.hparams({"loss": 1.0, "perplexity": 2.0}) == {"hparam/loss": 1.0, "hparam/perplexity": 2.0}


def test_which_is_better():
    assert CLASSIFICATION.is_better(0.9, 0.8)
    assert not CLASSIFICATION.is_better(0.8, 0.8)
    assert not CLASSIFICATION.is_better(0.0, CLASSIFICATION.worst)
    assert NEXT_TOKEN.is_better(0.8, 0.9)
    assert not NEXT_TOKEN.is_better(0.8, 0.8)
    assert NEXT_TOKEN.is_better(1e300, NEXT_TOKEN.worst)


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_a_task_is_whole(task):
    assert task.headline in task.metrics
    assert task.metrics[0].name == "loss", "evaluation, watch and schedules read it"
    assert len({metric.name for metric in task.metrics}) == len(task.metrics)


def test_todays_data_are_classified():
    assert task_of(load("points")) is CLASSIFICATION
