"""What whole runs show in TensorBoard: batch norm, activations, and the gradients of any network."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn import functional as F
from torch.testing import assert_close

from lessons.runs import Silent
from tests.support.dashboard import colors_of, events, image, pixels, random_pictures, writing
from tests.support.running import ROOT, learner_of
from training.config import Config
from training.dashboard import figures
from training.dashboard.weight_images import feature_maps, filter_pictures
from training.data import Dataset, load
from training.families.configure import configure
from training.learners.base import Learner
from training.loop import Loop

CNN = configure(model="cnn", channels=(4, 20), blocks=1, activation=("relu",), loss="softmax-cross-entropy", init="he")
LENET5 = configure(model="lenet5", activation=("scaled_tanh",), loss="softmax-cross-entropy", init="xavier")
TINY = replace(CNN, dtype="float64", lr=0.1, batch_size=8, epochs=2, histogram_every=2)
NORMS = [f"stage{s}.{norm}" for s in (1, 2) for norm in ("norm", "block1.norm1", "block1.norm2")]


@dataclass
class Run:
    reader: EventAccumulator
    learner: Learner
    data: Dataset

    def steps(self, kind: str, tag: str) -> list[int]:
        return [event.step for event in getattr(self.reader, kind)(tag)]


def run(run_dir: Path, config: Config, data: Dataset) -> Run:
    learner = learner_of(config, data)
    with writing(run_dir, config=config, data=data) as writer:
        loop = Loop(config, data, learner, writer, Silent(), run_dir)
        assert loop.run().finished
        loop.final_figures()
    return Run(events(run_dir), learner, data)


@pytest.fixture(scope="module")
def run_by(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """Six steps of a small network on pictures of three channels, by each implementation; made when first asked for."""
    root, data, made = tmp_path_factory.mktemp("runs"), random_pictures((3, 8, 8)), {}

    def by(impl: str) -> Run:
        if impl not in made:
            made[impl] = run(root / impl, replace(TINY, impl=impl), data)  # type: ignore[arg-type]
        return made[impl]

    return by


class TestRun:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        "impl", [*(pytest.param(i, marks=pytest.mark.slow) for i in ("manual", "reference")), "both"]
    )
    def test_pictures_running_statistics_and_the_scale_and_shift_of_batch_norm(self, run_by, impl: str) -> None:
        r = run_by(impl)
        assert {tag: r.steps("Images", tag) for tag in r.reader.Tags()["images"]} == {
            **{"images/filters": [0, 3, 6], "images/feature_maps": [0, 3, 6]},
            **{"images/gradient_by_depth": [6], "images/confusion_matrix": [6]},
        }
        tags = {tag for tag in r.reader.Tags()["histograms"] if tag.startswith("batch_norm/")}
        assert tags == {f"batch_norm/{norm}.running_{kind}" for norm in NORMS for kind in ("mean", "var")}
        state = r.learner.state_dict()["model"]
        for norm in NORMS:
            for tag, values, start in (
                (f"batch_norm/{norm}.running_mean", state[f"{norm}.running_mean"], 0),
                (f"batch_norm/{norm}.running_var", state[f"{norm}.running_var"], 1),
                (f"weights/{norm}", state[f"{norm}.weight"], 1),
                (f"biases/{norm}", state[f"{norm}.bias"], 0),
            ):
                shown = r.reader.Histograms(tag)
                first, last = shown[0].histogram_value, shown[-1].histogram_value
                assert [event.step for event in shown] == [0, 2, 4, 6], tag
                assert (first.min, first.max, first.num) == (start, start, len(values)), tag
                assert (last.min, last.max, last.num) == (values.min(), values.max(), len(values)), tag
                assert last.sum == pytest.approx(values.sum().item(), rel=1e-12), tag
                edges = np.array([-math.inf, *last.bucket_limit])
                assert np.histogram(values, edges)[0].tolist() == pytest.approx(last.bucket), tag

    @pytest.mark.slow
    def test_both_implementations_show_the_same(self, run_by) -> None:
        manual, reference = run_by("manual").reader, run_by("reference").reader
        assert manual.Tags()["images"] == reference.Tags()["images"]
        for kind in ("histograms", "scalars"):
            assert set(manual.Tags()[kind]) == set(reference.Tags()[kind])
        for tag in manual.Tags()["images"]:
            for a, b in zip(manual.Images(tag), reference.Images(tag), strict=True):
                difference = np.abs(pixels(a.encoded_image_string) - pixels(b.encoded_image_string))
                assert (difference.max(axis=2) > 4).mean() < 1e-3, f"{tag}, step {a.step}"  # the drift of six steps

    @pytest.mark.slow
    def test_pictures_are_of_the_network_as_it_was_at_their_step(self, run_by) -> None:
        r = run_by("both")
        a = r.learner.activations(r.data.test.batch(torch.arange(1), torch.float64)[0])
        expected = {
            "filters": filter_pictures(r.learner.parameters["stage1.conv.weight"]),
            "feature_maps": feature_maps(r.data.test.x[0].view(3, 8, 8), {name: a[name][0] for name in NORMS}),
        }
        for name, picture in expected.items():
            images = [pixels(event.encoded_image_string) for event in r.reader.Images(f"images/{name}")]
            assert (images[-1] == colors_of(picture)).all()
            assert images[0].shape != images[-1].shape or (images[0] != images[-1]).any()

    @pytest.mark.slow
    def test_without_histograms_the_gradients_are_there_at_the_end(self, tmp_path: Path) -> None:
        r = run(tmp_path, replace(TINY, histogram_every=0), random_pictures((3, 8, 8)))
        assert r.steps("Images", "images/gradient_by_depth") == [6]
        assert not r.reader.Tags()["histograms"]

    @pytest.mark.slow
    @pytest.mark.parametrize("of", ["points", "pictures", "convolutions"])
    def test_metrics_md_explains_every_tag(self, run_by, tmp_path: Path, of: str) -> None:
        """And a perceptron of pictures has its weights shown, but no maps."""
        data = load("points") if of == "points" else random_pictures((6, 6))
        config = configure(impl="both", dtype="float64", batch_size=8, max_steps=2, log_every=1, histogram_every=1)
        tags = (run_by("both") if of == "convolutions" else run(tmp_path, config, data)).reader.Tags()
        shown = {
            "points": {"decision_boundary", "confusion_matrix", "gradient_by_depth"},
            "pictures": {"first_layer_weights", "mistakes", "confusion_matrix", "gradient_by_depth"},
            "convolutions": {"filters", "feature_maps", "confusion_matrix", "gradient_by_depth"},
        }[of]
        assert set(tags["images"]) == {f"images/{name}" for name in shown}
        if of != "convolutions":
            folders = {tag.split("/")[0] for tag in tags["scalars"]}
            assert folders >= {"loss", "accuracy", "learning_rate", "gradient_norm", "update_ratio", "gradient_check"}
        explained = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
        for tag in (*tags["scalars"], *tags["histograms"], *tags["images"]):
            folder, _, name = tag.partition("/")
            kind = re.escape(name.rpartition(".")[2])
            family = rf"{folder}/(<(parameter|name)>|<layer>(\.{kind})?)"
            assert re.search(f"`({re.escape(tag)}|{family})`", explained), f"docs/metrics.md does not explain {tag}"


@pytest.mark.parametrize("config", [CNN, LENET5], ids=["cnn", "lenet5"])
def test_activations_by_definition_in_evaluation_mode_and_the_same_of_all_implementations(config: Config) -> None:
    """All three after two steps, at the same state, which they leave as it is."""
    data, config = random_pictures((1, 28, 28)), replace(config, dtype="float64", lr=0.1)
    learners = {impl: learner_of(replace(config, impl=impl), data) for impl in ("manual", "reference", "both")}
    learners["manual"].advance(torch.arange(20).view(2, 10), torch.full((2,), 0.1, dtype=torch.float64))
    p = learners["manual"].state_dict()["model"]
    x = torch.rand(5, 784, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found: dict[str, Mapping[str, torch.Tensor]] = {}
    for impl, learner in learners.items():
        learner.load_state_dict(learners["manual"].state_dict())
        found[impl], alone = learner.activations(x), learner.activations(x[:1])
        for name, a in alone.items():  # with the batch's own statistics an example's would depend on the others
            assert_close(a, found[impl][name][:1], rtol=1e-12, atol=1e-12)
            assert not found[impl][name].requires_grad, (impl, name)
        after = learner.state_dict()["model"]
        assert all(torch.equal(after[name], tensor) for name, tensor in p.items()), impl
        if "stage1.norm" in alone:  # and training still is in training mode
            mean = learner.backpropagate(x, torch.arange(5) % 3).buffers["stage1.norm.running_mean"]
            assert not torch.equal(mean, p["stage1.norm.running_mean"]), impl
    manual = found["manual"]
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
        m, v, gamma, beta = (p[f"stage1.norm.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        z = F.batch_norm(z, m, v, gamma, beta, training=False)
        assert_close(manual["stage1.norm"], z.relu(), rtol=1e-12, atol=1e-12)


class TestGradientByDepth:
    def test_what_is_drawn(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The curves as matplotlib has them, on a logarithmic scale; what has no place there is left out."""
        drawn = []
        monkeypatch.setattr(figures, "drawn", lambda figure: drawn.append(figure))
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
    @pytest.mark.parametrize(
        "value", [0.0, math.nan, 1.0, *(pytest.param(v, marks=pytest.mark.slow) for v in (math.inf, 1e-300, 1e300))]
    )
    def test_values_all_the_same(self, value: float) -> None:
        figures.gradient_by_depth({"a": value}, {})

    @pytest.mark.slow
    @pytest.mark.parametrize("impl", ["manual", pytest.param("reference", marks=pytest.mark.slow)])
    @pytest.mark.parametrize("model", ["mlp", "cnn"])
    def test_what_is_charted(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, impl: str, model: str) -> None:
        data = load("points") if model == "mlp" else random_pictures((8, 8))
        config = configure(hidden=(5, 4)) if model == "mlp" else CNN
        learner = learner_of(replace(config, impl=impl, dtype="float64"), data)  # type: ignore[arg-type]
        result = learner.backpropagate(*learner.batch(torch.arange(7)))
        charts = []

        def record(deltas: dict[str, float], weights: dict[str, float]) -> Image.Image:
            charts.append((deltas, weights))
            return draw(deltas, weights)

        draw = figures.gradient_by_depth
        monkeypatch.setattr(figures, "gradient_by_depth", record)
        tag, _ = image(tmp_path, data, "gradient_by_depth", result)
        assert tag == "images/gradient_by_depth"
        ((deltas, weights),) = charts
        layers, block = ["layer1", "layer2", "layer3"], ["conv1", "norm1", "conv2", "norm2"]
        if model == "cnn":
            stage = ["conv", "pool", "norm", *(f"block1.{layer}" for layer in block)]
            layers = [*(f"stage{s}.{layer}" for s in (1, 2) for layer in stage), "pool", "linear"]
        assert list(deltas) == layers
        assert list(weights) == [name for name in layers if "conv" in name or name.startswith(("linear", "layer"))]
        for shown, tensors, suffix in ((deltas, result.deltas, ""), (weights, result.gradients, ".weight")):
            for name, value in shown.items():
                v = tensors[name + suffix]
                assert value == pytest.approx((v.norm() / v.numel() ** 0.5).item(), rel=1e-12), name
