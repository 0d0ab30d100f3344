"""explain.py as a user runs it: on pictures, points and arrays. What it refuses is in test_refusals.py."""

import re
import shutil

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import explain as script
import train
from tests.support.explained import Autograd, as_number, data_of, said
from tests.support.running import call, flags, values, write_npz
from training.prediction import load_trained

pytestmark = pytest.mark.slow


@pytest.fixture
def asked(capsys, tmp_path):
    """What explain.py says of a checkpoint, and the page that it writes."""

    def ask(checkpoint, *options):
        out = tmp_path / "page.html"
        done = call(capsys, script.main, "--checkpoint", checkpoint, "--out", out, *options)
        assert (done.status, done.err) == (0, "")
        return done.out.replace(str(out), "page.html"), out.read_text(encoding="utf-8")

    return ask


def test_a_training_example(runs, sample, asked):
    x, y = sample.train.batch(torch.tensor([7]), torch.float64)
    trained = load_trained(runs["digits"])
    cost = Autograd(trained, trained.learner.params.theta.double()).cost(x, y).item()
    out, text = asked(runs["digits"], "--index", 7)
    assert out == f"training example 7: cost {cost:.4g}; page in page.html\n"
    assert said(text, "cost") == pytest.approx(cost, rel=5e-3)
    assert "<title>What training example 7 wants</title>" in text
    assert "784-16-16-10, sigmoid, quadratic cost, after 20 steps." in text
    picture = next(t for t in data_of(text)["charts"]["outputs"]["data"] if t["type"] == "heatmap")
    assert torch.tensor(picture["z"]).flatten().tolist() == pytest.approx(x[0].tolist(), rel=6e-3, abs=1e-15)


def test_without_a_name_the_test_example_that_has_most_to_say(runs, sample, asked):
    """The one with the highest cost, or one that lies between two classes; and what the network made of it at first."""
    x, y = sample.test.batch(torch.arange(2000), torch.float64)
    trained = [load_trained(runs["digits"] / name) for name in ("first.pt", "last.pt")]
    then, now = (Autograd(one, one.learner.params.theta.double()) for one in trained)
    costs, (best, classes) = now.costs(x, y), now.forward(x)[1][-1].topk(2)
    i, j = int(costs.argmax()), int((2 * best[:, 1] - best[:, 0]).argmax())
    out, text = asked(runs["digits"])
    why = f"its cost is the highest of all 2,000 test examples (their median is {costs.median():.2g})"
    assert out == f"test example {i:,}: cost {costs[i]:.4g}, picked because {why}; page in page.html\n"
    assert f"It was picked because {why}." in text
    rows = dict(re.findall(r"<tr><td>([^<]*)<td>(.*?)<td>", text.partition('id="step"')[2]))
    at_first = then.cost(x[i : i + 1], y[i : i + 1]), then.gradient(x[i : i + 1], y[i : i + 1]).norm()
    for row, value in zip(("cost of this example", "length of its gradient, ‖∇C‖"), at_first, strict=True):
        assert as_number(rows[row]) == pytest.approx(value.item(), rel=6e-3)
    out, _ = asked(runs["digits"], "--pick", "undecided")
    assert out.startswith(f"test example {j:,}: ")
    assert all(f"{value:.3g} for {name}" in out for value, name in zip(best[j], classes[j], strict=True))


def test_a_beginning_is_the_run_s_own_or_is_left_out(runs, tmp_path, asked):
    """An older run has none, and a file of another run may lie in the directory."""
    shutil.copy(runs["digits"] / "last.pt", tmp_path)
    assert "before its first step" not in asked(tmp_path)[1].lower()
    shutil.copy(runs["points"] / "first.pt", tmp_path)
    assert "before its first step" not in asked(tmp_path)[1].lower()
    assert "before its first step" not in asked(runs["digits"] / "first.pt")[1].lower()


def test_a_picture_of_ones_own(runs, sample, tmp_path, asked):
    """With its label, or without: then the target is what the network says."""
    row = int((sample.test.y == 1).nonzero()[0])
    Image.fromarray(sample.test.x[row].view(28, 28).numpy()).save(tmp_path / "one.png")
    out, text = asked(runs["digits"], "--image", tmp_path / "one.png", "--label", 3)
    assert out.startswith("one.png (class 3): cost ")
    assert "The target is <b>3</b>" in text
    assert "the network rightly says" in asked(runs["digits"], "--image", tmp_path / "one.png")[1]


@pytest.mark.long
@pytest.mark.parametrize("run", ["digits", "points"])
def test_figures_for_tensorboard(runs, asked, run):
    before = values(runs[run], "loss/test")
    asked(runs[run] / "last.pt", "--tensorboard", "--index", 1999)
    events = EventAccumulator(str(runs[run]), size_guidance={"images": 0, "scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["images"] if tag.startswith("explain/")]
    names = ("outputs", "network", "neuron", "adding_up_layer3", "adding_up_layer2", "sensitivity", "batch")
    assert tags == [f"explain/{name}" for name in (*names, "beginning", "step")]
    for tag in tags:
        (event,) = events.Images(tag)
        assert event.step == max(before)
        assert event.width > 1000
    assert len(events.Scalars("loss/test")) == len(before), "the run's own events are all there still"


def test_arrays_and_examples_that_were_held_out(tmp_path, asked, capsys):
    """Indices count the run's own training set, and a small one makes a small mini-batch."""
    run_dir, npz = tmp_path / "run", write_npz(tmp_path / "arrays.npz", train=20)
    options = {"dataset": "npz", "data_dir": npz, "hidden": (4,), "max_steps": 3, "run_dir": run_dir}
    assert call(capsys, train.main, *flags(options | {"validation": 12})).status == 0
    assert "The average of all 8 wishes" in asked(run_dir, "--index", 7)[1]
    assert asked(run_dir)[0].startswith("held-out example ")
    refused = call(capsys, script.main, "--checkpoint", run_dir, "--index", 8, "--out", tmp_path / "no.html")
    assert (refused.status, refused.err.count("\n")) == (2, 1)
    assert "from 0 to 7" in refused.err
