"""What a run prints after an evaluation."""

import re

import pytest

from training.config import Config
from training.dashboard.console import RunConsole
from training.tasks import CLASSIFICATION, NEXT_TOKEN, Task

OF_DIGITS = {"loss/test": 0.44546, "accuracy/test": 0.28451, "accuracy/train": 0.3153}
OF_TEXT = {"loss/test": 1.50009, "perplexity/test": 4.4821, "perplexity/train": 4.1}


def said(capsys: pytest.CaptureFixture[str], task: Task, values: dict[str, float], **options: int) -> str:
    console = RunConsole(Config(epochs=50, **options), task, 12_000)  # type: ignore[arg-type]
    console.steps(500)
    console.evaluated(3, 1_500, values)
    return re.sub(r"[\d,]+ examples/s", "S examples/s", capsys.readouterr().out)


def test_of_an_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    line = "epoch  3/50  loss/test 0.4455  accuracy/test 28.45%  accuracy/train 31.53%  S examples/s\n"
    assert said(capsys, CLASSIFICATION, OF_DIGITS) == line


def test_the_step_is_said_where_epochs_do_not_say_it(capsys: pytest.CaptureFixture[str]) -> None:
    line = said(capsys, CLASSIFICATION, OF_DIGITS, eval_every=500)
    assert line.startswith("epoch  3/50  step  1,500/12,000  loss/test 0.4455  ")


def test_of_a_text(capsys: pytest.CaptureFixture[str]) -> None:
    line = "epoch  3/50  loss/test 1.5001  perplexity/test 4.482  perplexity/train 4.100  S examples/s\n"
    assert said(capsys, NEXT_TOKEN, OF_TEXT) == line
