"""What a run prints after an evaluation."""

import re

import pytest

from training.config import Config
from training.dashboard.console import RunConsole
from training.tasks import CLASSIFICATION, NEXT_TOKEN, Task

OF_DIGITS = {"loss/test": 0.44546, "accuracy/test": 0.28451, "accuracy/train": 0.3153}
OF_TEXT = {"loss/test": 1.50009, "perplexity/test": 4.4821, "perplexity/train": 4.1}
DIGITS_SAID = "loss/test 0.4455  accuracy/test 28.45%  accuracy/train 31.53%"


@pytest.mark.parametrize(
    ("task", "values", "options", "said"),
    [
        pytest.param(CLASSIFICATION, OF_DIGITS, {}, DIGITS_SAID, id="an epoch"),
        pytest.param(CLASSIFICATION, OF_DIGITS, {"eval_every": 500}, f"step  1,500/12,000  {DIGITS_SAID}", id="a step"),
        pytest.param(
            NEXT_TOKEN, OF_TEXT, {}, "loss/test 1.5001  perplexity/test 4.482  perplexity/train 4.100", id="text"
        ),
    ],
)
def test_what_is_said(
    capsys: pytest.CaptureFixture[str], task: Task, values: dict[str, float], options: dict[str, int], said: str
) -> None:
    """The step where the epoch does not say it."""
    console = RunConsole(Config(epochs=50, **options), task, 12_000)  # type: ignore[arg-type]
    console.steps(500)
    console.evaluated(3, 1_500, values)
    assert re.fullmatch(rf"epoch  3/50  {re.escape(said)}  [\d,]+ examples/s\n", capsys.readouterr().out)
