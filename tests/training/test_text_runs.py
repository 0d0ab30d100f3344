"""A run on a text: steps, evaluation, what decides and what is logged, with a learner of the tests' own."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from math import exp
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lessons.runs import Silent
from tests.support.bigram import Bigram, text_data
from tests.support.both_ways import TWIN_LOSSES
from tests.support.running import assert_same, metrics, values
from training import checkpoint, evaluation
from training.config import Config
from training.dashboard import figures
from training.dashboard.tensorboard import MetricsWriter
from training.data import Dataset
from training.evaluation import Evaluation, evaluate
from training.evaluation.watch import Watch
from training.learners.reference import ReferenceLearner
from training.loop import Loop, Outcome
from training.run import Result, is_complete
from training.tasks import NEXT_TOKEN

# 200 ids in segments of 4 are 49; in 3 streams that is 16 steps an epoch.
SETTINGS = Config(batch_size=3, lr=1.0, epochs=2, schedule="constant", log_every=5, histogram_every=7, device="cpu")


def run(
    config: Config,
    data: Dataset,
    run_dir: Path,
    stop: Callable[[], bool] = lambda: False,
    then: Callable[[Loop], None] = lambda loop: None,
) -> tuple[Bigram, Outcome]:
    """From the beginning, or from where `last.pt` in `run_dir` stands; `then` is asked at the end."""
    run_dir.mkdir(exist_ok=True)
    learner, progress, start = Bigram(data), None, 0
    if (run_dir / "last.pt").exists():
        saved = checkpoint.load(run_dir)
        learner.load_state_dict(saved)
        progress, start = saved["progress"], learner.steps + 1
        for path in run_dir.glob("events.*"):
            path.unlink()
    with closing(MetricsWriter(run_dir, config, data, start_step=start, environment={})) as writer:
        loop = Loop(config, data, learner, writer, Silent(), run_dir, progress, stop)  # type: ignore[arg-type]
        outcome = loop.run()
        then(loop)
    return learner, outcome


@pytest.mark.parametrize(("carries", "steps"), [(True, 16), (False, 17)])
def test_an_epoch_has_the_steps_that_the_text_gives(carries: bool, steps: int, tmp_path: Path) -> None:
    learner, outcome = run(SETTINGS, text_data(carries=carries), tmp_path)
    assert outcome.steps == learner.steps == 2 * steps
    assert list(values(tmp_path, "loss/test")) == [0, steps, 2 * steps]


def test_what_is_carried_goes_on_within_an_epoch_and_is_dropped_before_the_next(tmp_path: Path) -> None:
    learner, _ = run(SETTINGS, text_data(), tmp_path)
    assert learner.forgot == [0, 16]
    assert [memory is None for memory in learner.begun_with] == ([True] + [False] * 15) * 2


def test_what_is_carried_is_dropped_before_a_step_that_is_logged_alone(tmp_path: Path) -> None:
    learner, _ = run(replace(SETTINGS, log_every=1), text_data(), tmp_path)
    assert learner.forgot == [0, 16]
    assert [memory is None for memory in learner.begun_with] == ([True] + [False] * 15) * 2


def test_windows_carry_nothing(tmp_path: Path) -> None:
    learner, _ = run(SETTINGS, text_data(carries=False), tmp_path)
    assert learner.forgot == []


def test_the_headline_is_the_cost_and_less_is_better(tmp_path: Path) -> None:
    _, outcome = run(SETTINGS, text_data(), tmp_path)
    losses = values(tmp_path, "loss/test")
    assert losses[0] == pytest.approx(torch.log(torch.tensor(5.0)).item())
    assert losses[32] < losses[16] < losses[0]
    assert (outcome.latest, outcome.best) == (losses[32], losses[32])
    assert checkpoint.load(tmp_path / "best.pt")["steps"] == 32
    assert outcome.headline == f"test loss {losses[32]:.4f} (best {losses[32]:.4f})"
    summary = Result(outcome, tmp_path, 1.0, 0).summary
    assert summary.startswith(outcome.headline + " after 1.0 s")
    assert "accuracy" not in summary


def test_what_is_logged(tmp_path: Path) -> None:
    run(SETTINGS, text_data(), tmp_path)
    last = [line for line in metrics(tmp_path) if "loss/test" in line][-1]
    assert list(last) == ["step", "loss/test", "perplexity/test", "perplexity/train"]
    assert last["perplexity/test"] == pytest.approx(exp(last["loss/test"]))
    assert not any("accuracy" in tag for line in metrics(tmp_path) for tag in line)


def test_an_evaluation_counts_targets_and_keeps_none_of_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    data = text_data()
    learner = Bigram(data)
    learner.W = torch.randn(5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x, y = data.test.batch(torch.arange(len(data.test)), torch.float64)
    expected = torch.nn.functional.cross_entropy(learner.W[x.flatten()], y).item()

    def only_the_last_is_kept() -> bool:
        assert not any(output() is not None for output in learner.given[:-1])
        return False

    for block, rows in ((2000, 88), (21, 20), (1, 4)):
        monkeypatch.setattr(evaluation.evaluation, "BLOCK", block)
        learner.largest, learner.given = 0, []
        result = evaluate(learner, data.test, torch.float64, only_the_last_is_kept, NEXT_TOKEN)  # type: ignore[arg-type]
        assert result is not None
        assert result.loss == pytest.approx(expected)
        assert result.values["perplexity"] == pytest.approx(exp(expected))
        assert learner.largest == rows
        assert len(result.outputs) == len(result.labels) == 0


class Table(torch.nn.Embedding):
    """The twin of a bigram: logits (B·T, V) of ids (B, T)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).flatten(0, 1)

    def observed(self) -> dict[str, torch.nn.Module]:
        return {}


def test_autograd_takes_the_mean_over_targets() -> None:
    data = text_data()
    table, loss = Table(5, 5), TWIN_LOSSES["softmax-cross-entropy"]
    reference = ReferenceLearner(table, loss, data.train, dtype=torch.float64)
    W = table.weight.detach().clone().requires_grad_()
    x, y = reference.batch(torch.arange(6))
    C = torch.nn.functional.cross_entropy(W[x.flatten()], y)
    C.backward()
    result = reference.backpropagate(x, y)
    torch.testing.assert_close(result.loss, C.detach())
    torch.testing.assert_close(result.gradients["weight"], W.grad)
    losses = reference.advance(torch.arange(6).unsqueeze(0), torch.tensor([0.5], dtype=torch.float64))
    torch.testing.assert_close(losses[0], C.detach())


def test_the_end_of_a_run(tmp_path: Path) -> None:
    run(SETTINGS, text_data(), tmp_path, then=Loop.final_figures)
    last = metrics(tmp_path)[-1]
    assert list(last) == ["step", "hparam/loss", "hparam/perplexity"]
    assert last["hparam/loss"] == values(tmp_path, "loss/test")[32]
    assert is_complete(tmp_path, 32, NEXT_TOKEN)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert events.Tags()["images"] == ["images/gradient_by_depth"]
    figures.curves({"text": tmp_path / "metrics.jsonl"}, tmp_path / "curves.png", NEXT_TOKEN)
    assert (tmp_path / "curves.png").stat().st_size > 10_000


@pytest.mark.parametrize("eval_every", [0, 6])
def test_stopped_anywhere_it_goes_on_as_if_it_had_not_been(eval_every: int, tmp_path: Path) -> None:
    config, data = replace(SETTINGS, eval_every=eval_every, log_every=3), text_data()
    run(config, data, tmp_path / "whole")
    for polls in (2, 6, 11, 17, 20):
        asked = iter(range(polls))
        run(config, data, tmp_path / str(polls), stop=lambda: next(asked, None) is None)  # noqa: B023
        run(config, data, tmp_path / str(polls))
        for name in ("last.pt", "best.pt"):
            one, other = (checkpoint.load(tmp_path / run_dir / name) for run_dir in (str(polls), "whole"))
            assert_same(one, other, name)
        assert metrics(tmp_path / str(polls)) == metrics(tmp_path / "whole")


def test_patience_follows_the_cost(tmp_path: Path) -> None:
    data = text_data()
    config = replace(SETTINGS, patience=2, validation=1, lr=200.0, epochs=50)
    _, outcome = run(config, data, tmp_path)
    losses = list(values(tmp_path, "loss/test").values())[1:]
    assert outcome.finished
    assert outcome.early == "no better loss for 2 epochs"
    assert len(losses) == losses.index(min(losses)) + 1 + 2
    assert outcome.best == min(losses)


def test_halving_follows_the_cost(tmp_path: Path) -> None:
    config = replace(SETTINGS, schedule="halve", lr_epochs=1, validation=1, epochs=4)
    run(config, text_data(), tmp_path)
    losses = list(values(tmp_path, "loss/test").values())[1:]
    assert losses == sorted(losses, reverse=True), "it gets better all the time, so nothing is halved"
    assert checkpoint.load(tmp_path)["progress"]["plateau"]["scale"] == 1


# Of a text only the cost is watched


def say(see: Watch, step: int, loss: float) -> str:
    nothing = torch.empty(0)
    return see(step, Evaluation({"loss": loss, "perplexity": exp(loss)}, nothing, nothing.long()), lambda x: {})


def test_a_cost_that_does_not_fall_is_told() -> None:
    see = Watch(SETTINGS, text_data(), 1000, {})
    assert [say(see, step, 1.6) for step in (0, 200)] == ["", ""]
    assert say(see, 300, 1.6) == (
        "this run does not learn so far: the cost of the training examples has hardly moved from 1.6. "
        "Try a smaller --lr (not 1), or another --optimizer or --seed"
    )


def test_a_cost_that_keeps_rising_is_told() -> None:
    see = Watch(SETTINGS, text_data(), 1000, {})
    assert [say(see, 100 * i, cost) for i, cost in enumerate((9.0, 1.0, 1.2, 1.4, 1.6))] == [""] * 5
    assert "it was 1, and is 1.7" in say(see, 500, 1.7)


def test_a_cost_that_falls_is_not() -> None:
    see = Watch(SETTINGS, text_data(), 300, {})
    assert [say(see, 100 * i, cost) for i, cost in enumerate((1.6, 1.4, 1.3, 1.2))] == [""] * 4
