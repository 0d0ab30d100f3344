"""What a run prints after an evaluation."""

import re

import pytest

from training.config import Config
from training.dashboard.console import RunConsole
from training.tasks import CLASSIFICATION, NEXT_TOKEN

DIGITS = {"loss/test": 0.44546, "accuracy/test": 0.28451, "accuracy/train": 0.3153}
TEXT = {"loss/test": 1.50009, "perplexity/test": 4.4821, "perplexity/train": 4.1}
OF_DIGITS = "loss/test 0.4455  accuracy/test 28.45%  accuracy/train 31.53%"
OF_TEXT = "loss/test 1.5001  perplexity/test 4.482  perplexity/train 4.100"
SAID = {
    "an epoch": (CLASSIFICATION, DIGITS, {}, OF_DIGITS),
    "a step": (CLASSIFICATION, DIGITS, {"eval_every": 500}, f"step  1,500/12,000  {OF_DIGITS}"),
    "text": (NEXT_TOKEN, TEXT, {}, OF_TEXT),
}


@pytest.mark.parametrize(("task", "values", "options", "said"), SAID.values(), ids=SAID)
def test_what_is_said(capsys, task, values, options, said):
    """The step where the epoch does not say it."""
    console = RunConsole(Config(epochs=50, **options), task, 12_000)
    console.steps(500)
    console.evaluated(3, 1_500, values)
    assert re.fullmatch(rf"epoch  3/50  {re.escape(said)}  [\d,]+ examples/s\n", capsys.readouterr().out)
