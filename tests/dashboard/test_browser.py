"""TensorBoard itself, in a real browser, shows two runs on one chart, and their histograms."""

import os
import re
import subprocess
import sys
import threading

import pytest
import torch

from tests.support.dashboard import writing
from tests.support.running import learner_of
from training.data import load
from training.families.configure import configure

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")

pytestmark = pytest.mark.slow

LOSSES = {"manual": 0.1234, "reference": 0.4321}  # unlike those of equal runs, so that the curves can be told apart
SECONDS = 60  # to start, and to show what it should: a limit, not a wait


def write_two_runs(root):
    """Small ones, side by side."""
    data = load("points")
    for impl, loss in LOSSES.items():
        config = configure(impl=impl, dataset="points", hidden=(5,))
        learner = learner_of(config, data)
        result = learner.backpropagate(*data.train.batch(torch.arange(100), torch.float32))
        with writing(root / impl, config=config, data=data) as writer:
            for step in (0, 50, 100):
                writer.scalars(step, {"loss/train": loss + (100 - step) / 100, "accuracy/test": step / 200})
                writer.histograms(step, learner.parameters, result)
            writer.hparams({"hparam/accuracy": 0.5})


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Where TensorBoard serves the runs; it chooses a free port itself and prints it."""
    write_two_runs(root := tmp_path_factory.mktemp("runs"))
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(root), "--host", "127.0.0.1", "--port", "0"]
    command += ["--load_fast", "false", "--reload_interval", "1"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        too_late = threading.Timer(SECONDS, process.kill)  # ends what can be read below
        too_late.start()
        try:
            printed = ""
            while not (found := re.search(r"http://127\.0\.0\.1:\d+/", printed)):
                line = process.stderr.readline()
                assert line, f"TensorBoard did not start: {printed}"
                printed += line
            too_late.cancel()
            yield found[0]
        finally:
            too_late.cancel()
            process.kill()


@pytest.fixture
def page(browser, address):
    """A page at TensorBoard's address, which fails the test if a script on it fails."""
    errors = []
    page = browser.new_page(base_url=address, viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(1000 * SECONDS)
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    page.close()
    assert errors == []


def test_both_runs_are_on_one_chart(page):
    page.goto("/?tagFilter=loss%2Ftrain&smoothing=0#timeseries")
    card = page.locator("scalar-card")
    rows = card.locator("tb-data-table-content-row")
    playwright.expect(rows).to_have_count(2, timeout=1000 * SECONDS)
    for run, loss in LOSSES.items():
        playwright.expect(rows.filter(has_text=run)).to_contain_text(f"{loss:.4f}", timeout=1000 * SECONDS)
    assert card.count() == 1
    playwright.expect(card).to_contain_text("loss/train")


@pytest.mark.long
def test_histograms_and_one_row_of_hparams_of_each_run_are_on_their_pages(page):
    page.goto("/?tagFilter=weights%2Flayer1#timeseries")
    cards = page.locator("histogram-card")
    playwright.expect(cards).to_have_count(2, timeout=1000 * SECONDS)  # one for each run
    for run in LOSSES:
        slices = cards.filter(has_text=run).locator("tb-histogram .histogram")
        playwright.expect(slices).to_have_count(3, timeout=1000 * SECONDS)  # one for each step
    page.goto("/#hparams")
    cells = page.locator("vaadin-grid-cell-content")
    for run in LOSSES:
        playwright.expect(cells.get_by_text(run, exact=True)).to_have_count(1, timeout=1000 * SECONDS)
    playwright.expect(page.locator("body")).to_contain_text("hparam/accuracy")
