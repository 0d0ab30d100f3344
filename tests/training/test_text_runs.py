"""A run on a text: steps, evaluation, what decides and what is logged."""

import weakref
from dataclasses import replace
from math import exp
from pathlib import Path

import pytest
import torch

from tests.support.run_cases import small_run
from tests.support.running import learner_of, metrics, resolved, train_loop, values
from training import checkpoint, evaluation
from training.evaluation import Evaluation, evaluate
from training.evaluation.watch import Watch
from training.run import Result, load_data
from training.tasks import NEXT_TOKEN

pytestmark = pytest.mark.usefixtures("registered")


def run_of(name, folder, **changes):
    """On a text of 297 letters, of which each but every seventh is the one before plus one, and 33 more for testing."""
    path = folder / "letters.txt"
    path.write_text("".join("abcde"[(i + i // 7) % 5] for i in range(330)))
    config = replace(small_run(name, Path())[0], data_dir=str(path), examples=0, **changes)
    data = load_data(config)
    return resolved(config, data), data


@pytest.mark.slow
@pytest.mark.parametrize("log_every", [1, 5, 99])
@pytest.mark.parametrize(("name", "sizes"), [("cell", [5] * 8), ("block", [5] * 7 + [2])])
def test_an_epoch_takes_all_that_the_text_gives(name, sizes, log_every, tmp_path, taken):
    """42 segments of 7 in 5 streams leave two out, 37 windows of 8 none; steps go together, or each alone."""
    config, data = run_of(name, tmp_path, log_every=log_every)
    train_loop(config, data, tmp_path / "run")
    assert [len(batch) for batch in taken[0]] == sizes * 2
    orders = [data.train.order(0, epoch, 5).tolist() for epoch in (0, 1)]
    assert [i for batch in taken[0] for i in batch] == [*orders[0], *orders[1]]
    assert list(values(tmp_path / "run", "loss/test")) == [0, 8, 16]


def test_the_headline_is_the_cost_and_less_is_better(tmp_path):
    _, outcome = train_loop(*run_of("cell", tmp_path), tmp_path / "run")
    losses = values(tmp_path / "run", "loss/test")
    assert losses[16] < losses[8] < losses[0] < 2
    assert (outcome.latest, outcome.best) == (losses[16], losses[16])
    assert checkpoint.load(tmp_path / "run" / "best.pt")["steps"] == 16
    assert outcome.headline == f"test loss {losses[16]:.4f} (best {losses[16]:.4f})"
    summary = Result(outcome, tmp_path, 1.0, 0).summary
    assert summary.startswith(outcome.headline + " after 1.0 s")
    assert "accuracy" not in summary

    last = [line for line in metrics(tmp_path / "run") if "loss/test" in line][-1]
    assert list(last) == ["step", "loss/test", "perplexity/test", "perplexity/train"]
    assert last["perplexity/test"] == pytest.approx(exp(last["loss/test"]))
    assert not any("accuracy" in tag for line in metrics(tmp_path / "run") for tag in line)


@pytest.mark.parametrize(("block", "rows"), [(2000, 28), (21, 21), (1, 7)])
def test_an_evaluation_counts_targets_and_keeps_none_of_a_text(block, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation.evaluation, "BLOCK", block)
    config, data = run_of("cell", tmp_path, dtype="float64")
    learner, given, sizes = learner_of(config, data), [], []
    x, y = data.test.batch(torch.arange(len(data.test)), torch.float64)
    expected = torch.nn.functional.cross_entropy(learner.outputs(x), y).item()
    right = learner.evaluate

    def watched(x, y):
        loss, output = right(x, y)
        given.append(weakref.ref(output))
        sizes.append(len(output))
        return loss, output

    def only_the_last_is_kept():
        assert not any(output() is not None for output in given[:-1])
        return False

    monkeypatch.setattr(learner, "evaluate", watched)
    result = evaluate(learner, data.test, torch.float64, only_the_last_is_kept, NEXT_TOKEN)
    assert result.loss == pytest.approx(expected)
    assert result.values["perplexity"] == pytest.approx(exp(expected))
    assert (max(sizes), sum(sizes)) == (rows, 28)
    assert len(result.outputs) == len(result.labels) == 0


def test_patience_and_halving_follow_the_cost(tmp_path):
    config, data = run_of("cell", tmp_path, patience=2, validation=30, lr=0.3, epochs=50)
    _, outcome = train_loop(config, data, tmp_path / "run")
    losses = list(values(tmp_path / "run", "loss/test").values())[1:]
    assert (outcome.finished, outcome.early) == (True, "no better loss for 2 epochs")
    assert len(losses) == losses.index(min(losses)) + 1 + 2
    assert outcome.best == min(losses)

    config, data = run_of("cell", tmp_path, schedule="halve", lr_epochs=1, validation=30, epochs=4)
    train_loop(config, data, tmp_path / "halved")
    losses = list(values(tmp_path / "halved", "loss/test").values())[1:]
    assert losses == sorted(losses, reverse=True), "it gets better all the time, so nothing is halved"
    assert checkpoint.load(tmp_path / "halved")["progress"]["plateau"]["scale"] == 1


HARDLY = (
    "this run does not learn so far: the cost of the training examples has hardly moved from 1.6. "
    "Try a smaller --lr (not 0.005), or another --optimizer or --seed"
)
COSTS = {
    "does not fall": (1000, {0: 1.6, 200: 1.6, 300: 1.6}, HARDLY),
    "keeps rising": (1000, {0: 9.0, 100: 1.0, 200: 1.2, 300: 1.4, 400: 1.6, 500: 1.7}, "it was 1, and is 1.7"),
    "falls": (300, {0: 1.6, 100: 1.4, 200: 1.3, 300: 1.2}, ""),
}


@pytest.mark.parametrize(("total", "losses", "told"), COSTS.values(), ids=COSTS)
def test_of_a_text_only_the_cost_is_watched(total, losses, told, tmp_path):
    see, nothing = Watch(*run_of("cell", tmp_path), total, {}), torch.empty(0)
    said = []
    for step, loss in losses.items():
        evaluated = Evaluation({"loss": loss, "perplexity": exp(loss)}, nothing, nothing.long())
        said.append(see(step, evaluated, lambda x: pytest.fail("activations are not looked at")))
    assert not any(said[:-1])
    assert bool(said[-1]) == bool(told)
    assert told in said[-1]
