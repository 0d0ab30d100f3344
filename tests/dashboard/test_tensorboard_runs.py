"""What whole runs show in TensorBoard: batch norm, activations, and the gradients of any network."""

import math
import re
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from lessons.runs import Silent
from tests.support.dashboard import colors_of, events, image, image_steps, images, random_pictures, texts, writing
from tests.support.running import ROOT, learner_of
from training.dashboard import figures
from training.dashboard.weight_images import feature_maps, filter_pictures
from training.data import load
from training.families.configure import configure
from training.families.networks import arranged
from training.loop import Loop

CNN = configure(model="cnn", channels=(4, 20), blocks=1, activation=("relu",), loss="softmax-cross-entropy", init="he")
LENET5 = configure(model="lenet5", activation=("scaled_tanh",), loss="softmax-cross-entropy", init="xavier")
TINY = replace(CNN, dtype="float64", lr=0.1, batch_size=8, epochs=2, histogram_every=2)
NORMS = [f"stage{s}.{norm}" for s in (1, 2) for norm in ("norm", "block1.norm1", "block1.norm2")]
COLORED = random_pictures((3, 8, 8))


def run(run_dir, config, data):
    """TensorBoard's reader, and the learner at the end."""
    learner = learner_of(config, data)
    with writing(run_dir, config=config, data=data) as writer:
        loop = Loop(config, data, learner, writer, Silent(), run_dir)
        assert loop.run().finished
        loop.final_figures()
    return events(run_dir), learner


@pytest.fixture(scope="module")
def run_by(tmp_path_factory):
    """Six steps of a small network on pictures of three channels, by each implementation; made when first asked for."""
    root = tmp_path_factory.mktemp("runs")
    return cache(lambda impl: run(root / impl, replace(TINY, impl=impl), COLORED))


@pytest.mark.slow
class TestRun:
    @pytest.mark.parametrize("impl", ["manual", "reference", "both"])
    def test_pictures_running_statistics_and_the_scale_and_shift_of_batch_norm(self, run_by, impl):
        reader, learner = run_by(impl)
        seldom = {"gradient_by_depth": [6], "confusion_matrix": [6]}
        assert image_steps(reader) == {"filters": [0, 3, 6], "feature_maps": [0, 3, 6], **seldom}
        tags = {tag for tag in reader.Tags()["histograms"] if tag.startswith("batch_norm/")}
        assert tags == {f"batch_norm/{norm}.running_{kind}" for norm in NORMS for kind in ("mean", "var")}
        for kind in ("histograms", "scalars"):
            of_both = {tag for tag in run_by("both")[0].Tags()[kind] if not tag.startswith("gradient_check/")}
            assert {tag for tag in reader.Tags()[kind] if not tag.startswith("gradient_check/")} == of_both
        state = learner.state_dict()["model"]
        for norm in NORMS:
            for tag, values, start in (
                (f"batch_norm/{norm}.running_mean", state[f"{norm}.running_mean"], 0),
                (f"batch_norm/{norm}.running_var", state[f"{norm}.running_var"], 1),
                (f"weights/{norm}", state[f"{norm}.weight"], 1),
                (f"biases/{norm}", state[f"{norm}.bias"], 0),
            ):
                shown = reader.Histograms(tag)
                first, last = shown[0].histogram_value, shown[-1].histogram_value
                assert [event.step for event in shown] == [0, 2, 4, 6], tag
                assert (first.min, first.max, first.num) == (start, start, len(values)), tag
                assert (last.min, last.max, last.num) == (values.min(), values.max(), len(values)), tag
                assert last.sum == pytest.approx(values.sum().item(), rel=1e-12), tag
                edges = np.array([-math.inf, *last.bucket_limit])
                assert np.histogram(values, edges)[0].tolist() == pytest.approx(last.bucket), tag

    def test_pictures_are_of_the_network_as_it_was_at_their_step(self, run_by):
        reader, learner = run_by("both")
        a = learner.activations(COLORED.test.batch(torch.arange(1), torch.float64)[0])
        maps = feature_maps(COLORED.test.x[0].view(3, 8, 8), {name: a[name][0] for name in NORMS})
        filters = filter_pictures(learner.parameters["stage1.conv.weight"])
        for name, picture in (("filters", filters), ("feature_maps", maps)):
            (_, first), *_, (_, last) = images(reader)[name]
            assert (last == colors_of(picture)).all()
            assert first.shape != last.shape or (first != last).any()

    def test_without_histograms_the_gradients_are_there_at_the_end(self, tmp_path):
        reader, _ = run(tmp_path, replace(TINY, histogram_every=0), COLORED)
        assert image_steps(reader)["gradient_by_depth"] == [6]
        assert not reader.Tags()["histograms"]

    @pytest.mark.parametrize("of", ["points", "pictures", "convolutions", "text"])
    def test_metrics_md_explains_every_tag(self, run_by, tmp_path, of):
        """And a perceptron of pictures has its weights shown, but no maps; a network of a text what it generates."""
        options = (
            {"model": "recurrent", "width": 5, "context": 9, "loss": "softmax-cross-entropy"} if of == "text" else {}
        )
        often = {"max_steps": 2, "log_every": 1, "histogram_every": 1}
        config = configure(impl="both", dtype="float64", batch_size=8, **often, **options)
        given = {"points": ("points",), "text": ("text", ROOT / "LICENSE")}.get(of)
        data = arranged(config, load(*given)) if given else random_pictures((6, 6))
        reader, _ = run_by("both") if of == "convolutions" else run(tmp_path, config, data)
        shown = {
            "points": {"confusion_matrix", "decision_boundary"},
            "pictures": {"confusion_matrix", "first_layer_weights", "mistakes"},
            "convolutions": {"confusion_matrix", "filters", "feature_maps"},
            "text": set(),
        }
        assert image_steps(reader).keys() == shown[of] | {"gradient_by_depth"}
        tags = reader.Tags()
        if of != "convolutions":
            folders = {tag.split("/")[0] for tag in tags["scalars"]}
            metric = "bits" if of == "text" else "accuracy"
            assert folders >= {"loss", metric, "learning_rate", "gradient_norm", "update_ratio", "gradient_check"}
        if of == "text":
            begin = "".join(data.classes[i] for i in data.test.ids[:32].tolist()).replace("\n", "\n    ")
            generated = texts(reader, "generated")
            assert [(step, text.startswith(f"    {begin}")) for step, text in generated] == [(0, True), (2, True)]
            assert generated[0] != generated[1]
        explained = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
        written = (tag.removesuffix("/text_summary") for tag in tags["tensors"] if not tag.startswith("_hparams_"))
        for tag in (*tags["scalars"], *tags["histograms"], *tags["images"], *written):
            folder, _, name = tag.partition("/")
            kind = re.escape(name.rpartition(".")[2])
            family = rf"{folder}/(<(parameter|name)>|<layer>(\.{kind})?)"
            assert re.search(f"`({re.escape(tag)}|{family})`", explained), f"docs/metrics.md does not explain {tag}"


@pytest.mark.parametrize("config", [CNN, LENET5], ids=["cnn", "lenet5"])
def test_activations_by_definition_in_evaluation_mode_and_the_same_of_all_implementations(config):
    """All three after two steps. That they leave a learner as it is has its test in tests/learners/test_states.py."""
    data, config = random_pictures((1, 28, 28)), replace(config, dtype="float64")
    learners = {impl: learner_of(replace(config, impl=impl), data) for impl in ("manual", "reference", "both")}
    learners["manual"].advance(torch.arange(20).view(2, 10), torch.full((2,), 0.1, dtype=torch.float64))
    state = learners["manual"].state_dict()
    x = torch.rand(5, 784, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = {}
    for impl, learner in learners.items():
        learner.load_state_dict(state)
        found[impl] = learner.activations(x)
        for name, a in learner.activations(
            x[:1]
        ).items():  # of the batch's own statistics it would depend on the others
            assert_close(a, found[impl][name][:1], rtol=1e-12, atol=1e-12)
            assert not found[impl][name].requires_grad, (impl, name)
    manual, p = found["manual"], state["model"]
    assert list(manual) == list(found["reference"]) == list(found["both"])
    for name, a in manual.items():
        assert (a - found["reference"][name]).norm() / a.norm() < 1e-14, name
        assert torch.equal(a, found["both"][name]), name
    pictures = x.view(5, 1, 28, 28)
    if "C1" in manual:
        z = F.conv2d(pictures, p["C1.weight"], p["C1.bias"], padding=2)
        assert_close(manual["C1"], 1.7159 * torch.tanh(2 / 3 * z), rtol=1e-12, atol=1e-12)
    else:
        z = F.max_pool2d(F.conv2d(pictures, p["stage1.conv.weight"], padding=1), 2)
        z = F.batch_norm(z, *(p[f"stage1.norm.{k}"] for k in ("running_mean", "running_var", "weight", "bias")))
        assert_close(manual["stage1.norm"], z.relu(), rtol=1e-12, atol=1e-12)


class TestGradientByDepth:
    def test_what_is_drawn(self, monkeypatch):
        """The curves as matplotlib has them, on a logarithmic scale; what has no place there is left out."""
        drawn = []
        monkeypatch.setattr(figures, "drawn", drawn.append)
        deltas = {"a": 1e-4, "b": 1e-2, "c": 0.0, "d": math.inf, "e": math.nan, "f": 0.3}
        figures.gradient_by_depth(deltas, {"b": 1e-3, "f": 1.0})
        (axes,) = drawn[0].axes
        delta, weights = axes.lines
        assert axes.get_yscale() == "log"
        assert [label.get_text() for label in axes.get_xticklabels()] == list("abcdef")
        assert list(delta.get_xdata()) == list(range(6))
        assert np.array_equal(delta.get_ydata(), [1e-4, 1e-2, math.nan, math.nan, math.nan, 0.3], equal_nan=True)
        assert (list(weights.get_xdata()), list(weights.get_ydata())) == ([1, 5], [1e-3, 1.0])
        assert [text.get_text() for text in axes.get_legend().get_texts()] == ["δ", "∂C/∂W"]

    @pytest.mark.sweep(3)
    @pytest.mark.parametrize("value", [0.0, math.nan, 1.0, math.inf, 1e-300, 1e300])
    def test_values_all_the_same(self, value):
        figures.gradient_by_depth({"a": value}, {})

    @pytest.mark.slow
    @pytest.mark.parametrize("impl", ["manual", "reference"])
    @pytest.mark.parametrize("model", ["mlp", "cnn"])
    def test_what_is_charted(self, tmp_path, monkeypatch, impl, model):
        data = load("points") if model == "mlp" else random_pictures((8, 8))
        config = configure(hidden=(5, 4)) if model == "mlp" else CNN
        learner = learner_of(replace(config, impl=impl, dtype="float64"), data)
        result = learner.backpropagate(*learner.batch(torch.arange(7)))
        charts, draw = [], figures.gradient_by_depth
        monkeypatch.setattr(figures, "gradient_by_depth", lambda *sizes: charts.append(sizes) or draw(*sizes))
        assert image(tmp_path, data, "gradient_by_depth", result)[0] == "gradient_by_depth"
        ((deltas, weights),) = charts
        stage = ["conv", "pool", "norm", "block1.conv1", "block1.norm1", "block1.conv2", "block1.norm2"]
        layers = [*(f"stage{s}.{layer}" for s in (1, 2) for layer in stage), "pool", "linear"]
        layers = layers if model == "cnn" else ["layer1", "layer2", "layer3"]
        assert list(deltas) == layers
        assert list(weights) == [name for name in layers if "conv" in name or name.startswith(("linear", "layer"))]
        for shown, tensors, suffix in ((deltas, result.deltas, ""), (weights, result.gradients, ".weight")):
            for name, value in shown.items():
                v = tensors[name + suffix]
                assert value == pytest.approx((v.norm() / v.numel() ** 0.5).item(), rel=1e-12), name
