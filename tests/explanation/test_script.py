"""explain.py as a user runs it: on pictures, points and arrays. What it refuses is in test_bad_input.py."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import explain as script
import train
from tests.support.explained import Autograd, data_of, said
from tests.support.running import call, flags, values, write_npz
from training.data import Dataset
from training.prediction import load_trained

pytestmark = pytest.mark.slow

Capsys = pytest.CaptureFixture[str]


def test_a_training_example(runs: dict[str, Path], sample: Dataset, tmp_path: Path, capsys: Capsys) -> None:
    out = tmp_path / "seven.html"
    done = call(capsys, script.main, "--checkpoint", runs["digits"], "--index", 7, "--out", out)
    assert (done.status, done.err) == (0, "")
    x, y = sample.train.batch(torch.tensor([7]), torch.float64)
    trained = load_trained(runs["digits"])
    cost = Autograd(trained, trained.learner.params.theta.double()).cost(x, y).item()
    assert done.out == f"training example 7: cost {cost:.4g}; page in {out}\n"
    text = out.read_text(encoding="utf-8")
    assert said(text, "cost") == pytest.approx(cost, rel=5e-3)
    assert "<title>What training example 7 wants</title>" in text
    assert "784-16-16-10, sigmoid, quadratic cost, after 20 steps." in text
    picture = next(t for t in data_of(text)["charts"]["outputs"]["data"] if t["type"] == "heatmap")
    assert torch.tensor(picture["z"]).flatten().tolist() == pytest.approx(x[0].tolist(), rel=6e-3, abs=1e-15)


def test_a_picture_of_ones_own(runs: dict[str, Path], sample: Dataset, tmp_path: Path, capsys: Capsys) -> None:
    """With its label, or without: then the target is what the network says."""
    row = int((sample.test.y == 1).nonzero()[0])
    Image.fromarray(sample.test.x[row].view(28, 28).numpy()).save(tmp_path / "one.png")
    asked = ["--checkpoint", runs["digits"], "--image", tmp_path / "one.png", "--out", tmp_path / "page.html"]
    done = call(capsys, script.main, *asked, "--label", 3)
    assert done.out.startswith("one.png (class 3): cost ")
    assert "The target is <b>3</b>" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert call(capsys, script.main, *asked).status == 0
    assert "the network rightly says" in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.long
def test_figures_for_tensorboard(runs: dict[str, Path], tmp_path: Path, capsys: Capsys) -> None:
    digits = runs["digits"]
    before = values(digits, "loss/test")
    asked = ["--checkpoint", digits / "last.pt", "--out", tmp_path / "page.html", "--tensorboard"]
    assert call(capsys, script.main, *asked).status == 0
    events = EventAccumulator(str(digits), size_guidance={"images": 0, "scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["images"] if tag.startswith("explain/")]
    names = ("outputs", "network", "neuron", "adding_up_layer3", "adding_up_layer2", "sensitivity", "batch", "step")
    assert tags == [f"explain/{name}" for name in names]
    for tag in tags:
        (event,) = events.Images(tag)
        assert event.step == 20
        assert event.width > 1000
    assert len(events.Scalars("loss/test")) == len(before), "the run's own events are all there still"


@pytest.mark.long
def test_points_have_no_picture(runs: dict[str, Path], tmp_path: Path, capsys: Capsys) -> None:
    asked = ["--checkpoint", runs["points"], "--out", tmp_path / "page.html", "--tensorboard", "--index", 1999]
    assert call(capsys, script.main, *asked).status == 0
    charts = data_of((tmp_path / "page.html").read_text(encoding="utf-8"))["charts"]
    assert not [t for name in ("outputs", "network") for t in charts[name]["data"] if t["type"] == "heatmap"]


def test_arrays_and_examples_that_were_held_out(tmp_path: Path, capsys: Capsys) -> None:
    """Indices count the run's own training set, and a small one makes a small mini-batch."""
    npz = write_npz(tmp_path / "arrays.npz", train=20)
    options = {"dataset": "npz", "data_dir": npz, "hidden": (4,), "max_steps": 3, "run_dir": tmp_path / "run"}
    assert call(capsys, train.main, *flags(options | {"validation": 12})).status == 0
    asked = ["--checkpoint", tmp_path / "run", "--out", tmp_path / "page.html", "--index"]
    assert call(capsys, script.main, *asked, 7).status == 0
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "The average of all 8 wishes" in text
    refused = call(capsys, script.main, *asked, 8)
    assert (refused.status, refused.err.count("\n")) == (2, 1)
    assert "from 0 to 7" in refused.err
