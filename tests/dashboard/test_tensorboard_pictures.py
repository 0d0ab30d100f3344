"""What TensorBoard shows of a convolutional network, and of the gradients of any: read back, and looked at by pixel."""

import io
import math
import re
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.nn import functional as F

from tests.support.running import learner_of
from training.config import Config
from training.dashboard import figures
from training.dashboard.tensorboard import MetricsWriter
from training.dashboard.weight_images import feature_maps, filter_pictures
from training.data import Dataset, load
from training.data.dataset import Split
from training.families.configure import configure
from training.learners.base import Learner
from training.loop import Loop

CNN = configure(model="cnn", channels=(4, 20), blocks=1, activation=("relu",), loss="softmax-cross-entropy", init="he")
LENET5 = configure(model="lenet5", activation=("scaled_tanh",), loss="softmax-cross-entropy", init="xavier")
TINY = replace(CNN, dtype="float64", lr=0.1, batch_size=8, epochs=2, histogram_every=2)
NORMS = [f"stage{s}.{norm}" for s in (1, 2) for norm in ("norm", "block1.norm1", "block1.norm2")]

RED, WHITE, BLUE, BLACK = [178, 24, 43], [255, 255, 255], [33, 102, 172], [0, 0, 0]
LABEL = 24  # pixels above every row of maps


class Silent:
    def steps(self, done: int) -> None: ...

    def evaluated(self, epoch: int, step: int, values: dict[str, float]) -> None: ...


def random_pictures(shape: tuple[int, ...], examples: int = 24, classes: int = 3) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (examples, math.prod(shape)), generator=generator, dtype=torch.uint8)
    test = torch.randint(256, (6, math.prod(shape)), generator=generator, dtype=torch.uint8)
    names = tuple(f"class {i}" for i in range(classes))
    train, test_set = Split(x, torch.arange(examples) % classes), Split(test, torch.arange(6) % classes)
    return Dataset("npz", train, test_set, shape, names, "random")


def read(run_dir: Path) -> EventAccumulator:
    return EventAccumulator(str(run_dir), size_guidance={"histograms": 0, "images": 0}).Reload()


def pixels(encoded: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB")).astype(int)


def colors_of(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB")).astype(int)


def written(run_dir: Path, data: Dataset, tag: str, call: str, *arguments: object) -> np.ndarray | None:
    """The image that a call of the writer leaves for TensorBoard; None if it leaves none."""
    run_dir.mkdir(exist_ok=True)
    with closing(MetricsWriter(run_dir, CNN, data, environment={})) as writer:
        getattr(writer, call)(7, *arguments)
    reader = read(run_dir)
    if not reader.Tags()["images"]:
        return None
    assert reader.Tags()["images"] == [tag]
    (event,) = reader.Images(tag)
    image = pixels(event.encoded_image_string)
    assert (event.step, event.height, event.width) == (7, *image.shape[:2])
    return image


@dataclass
class Run:
    reader: EventAccumulator
    learner: Learner
    data: Dataset

    def steps(self, kind: str, tag: str) -> list[int]:
        return [event.step for event in getattr(self.reader, kind)(tag)]


def run(run_dir: Path, config: Config, data: Dataset) -> Run:
    run_dir.mkdir()
    learner = learner_of(config, data)
    with closing(MetricsWriter(run_dir, config, data, environment={})) as writer:
        loop = Loop(config, data, learner, writer, Silent(), run_dir)
        assert loop.run().finished
        loop.final_figures()
    return Run(read(run_dir), learner, data)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Run]:
    """Six steps of a small network on pictures of three channels, by each implementation."""
    root, data = tmp_path_factory.mktemp("runs"), random_pictures((3, 8, 8))
    return {impl: run(root / impl, replace(TINY, impl=impl), data) for impl in ("manual", "reference", "both")}  # type: ignore[arg-type]


IMPLEMENTATIONS = pytest.mark.parametrize("impl", ["manual", "reference", "both"])


class TestRun:
    @IMPLEMENTATIONS
    def test_pictures_and_their_steps(self, runs: Mapping[str, Run], impl: str) -> None:
        r = runs[impl]
        images = {tag: r.steps("Images", tag) for tag in r.reader.Tags()["images"]}
        assert images == {
            "images/filters": [0, 3, 6],
            "images/feature_maps": [0, 3, 6],
            "images/gradient_by_depth": [6],
            "images/confusion_matrix": [6],
        }

    @IMPLEMENTATIONS
    def test_running_statistics_and_the_scale_and_shift_of_batch_norm(self, runs: Mapping[str, Run], impl: str) -> None:
        r = runs[impl]
        tags = {tag for tag in r.reader.Tags()["histograms"] if tag.startswith("batch_norm/")}
        assert tags == {f"batch_norm/{norm}.running_{kind}" for norm in NORMS for kind in ("mean", "var")}
        state = r.learner.state_dict()["model"]
        for norm in NORMS:
            for tag, name, start in (
                (f"batch_norm/{norm}.running_mean", f"{norm}.running_mean", 0),
                (f"batch_norm/{norm}.running_var", f"{norm}.running_var", 1),
                (f"weights/{norm}", f"{norm}.weight", 1),
                (f"biases/{norm}", f"{norm}.bias", 0),
            ):
                events = r.reader.Histograms(tag)
                first, last = events[0].histogram_value, events[-1].histogram_value
                assert [event.step for event in events] == [0, 2, 4, 6]
                assert (first.min, first.max, first.num) == (start, start, len(state[name]))
                values = state[name]
                assert (last.min, last.max, last.num) == (values.min(), values.max(), len(values))
                assert last.sum == pytest.approx(values.sum().item(), rel=1e-12)
                edges = np.array([-math.inf, *last.bucket_limit])
                assert np.histogram(values, edges)[0].tolist() == pytest.approx(last.bucket)

    def test_both_implementations_show_the_same(self, runs: Mapping[str, Run]) -> None:
        manual, reference = runs["manual"].reader, runs["reference"].reader
        assert manual.Tags()["images"] == reference.Tags()["images"]
        assert set(manual.Tags()["histograms"]) == set(reference.Tags()["histograms"])
        assert set(manual.Tags()["scalars"]) == set(reference.Tags()["scalars"])
        for tag in manual.Tags()["images"]:
            for a, b in zip(manual.Images(tag), reference.Images(tag), strict=True):
                difference = np.abs(pixels(a.encoded_image_string) - pixels(b.encoded_image_string))
                assert (difference.max(axis=2) > 4).mean() < 1e-3, f"{tag}, step {a.step}"  # the drift of six steps

    def test_pictures_are_of_the_network_as_it_was_at_their_step(self, runs: Mapping[str, Run]) -> None:
        r = runs["manual"]
        x, _ = r.data.test.batch(torch.arange(1), torch.float64)
        a = r.learner.activations(x)
        expected = {
            "filters": filter_pictures(r.learner.parameters["stage1.conv.weight"]),
            "feature_maps": feature_maps(r.data.test.x[0].view(3, 8, 8), {name: a[name][0] for name in NORMS}),
        }
        for name, picture in expected.items():
            images = [pixels(event.encoded_image_string) for event in r.reader.Images(f"images/{name}")]
            assert (images[-1] == colors_of(picture)).all()
            assert images[0].shape != images[-1].shape or (images[0] != images[-1]).any()

    def test_without_histograms_the_gradients_are_there_at_the_end(self, tmp_path: Path) -> None:
        r = run(tmp_path / "run", replace(TINY, histogram_every=0), random_pictures((3, 8, 8)))
        assert r.steps("Images", "images/gradient_by_depth") == [6]
        assert not r.reader.Tags()["histograms"]

    def test_a_perceptron_has_no_maps(self, tmp_path: Path) -> None:
        config, data = configure(hidden=(5,), batch_size=8, epochs=1), random_pictures((6, 6))
        tags = set(run(tmp_path / "run", config, data).reader.Tags()["images"])
        assert {"images/first_layer_weights", "images/gradient_by_depth"} <= tags
        assert not tags & {"images/filters", "images/feature_maps"}

    def test_metrics_md_explains_every_tag(self, runs: Mapping[str, Run]) -> None:
        explained = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
        tags = runs["both"].reader.Tags()
        for tag in (*tags["images"], *(tag for tag in tags["histograms"] if tag.startswith("batch_norm/"))):
            assert f"`{re.sub(r'^batch_norm/.*[.]', 'batch_norm/<layer>.', tag)}`" in explained


class TestActivations:
    @pytest.fixture(params=[CNN, LENET5], ids=["cnn", "lenet5"])
    def learners(self, request: pytest.FixtureRequest) -> dict[str, Learner]:
        """All three, after two steps, at the same state."""
        data = random_pictures((1, 28, 28))
        config = replace(request.param, dtype="float64", lr=0.1)
        learners = {i: learner_of(replace(config, impl=i), data) for i in ("manual", "reference", "both")}
        learners["manual"].advance(torch.arange(20).view(2, 10), torch.full((2,), 0.1, dtype=torch.float64))
        for learner in learners.values():
            learner.load_state_dict(learners["manual"].state_dict())
        return learners

    def test_are_the_same_by_hand_and_by_autograd(self, learners: dict[str, Learner]) -> None:
        x = torch.rand(5, 784, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        manual, reference, both = (learners[i].activations(x) for i in ("manual", "reference", "both"))
        assert list(manual) == list(reference) == list(both)
        for name, a in manual.items():
            assert not reference[name].requires_grad
            error = (a - reference[name]).norm() / a.norm()
            assert error < 1e-14, name
            assert torch.equal(a, both[name])

    @IMPLEMENTATIONS
    def test_are_in_evaluation_mode_and_change_nothing(self, learners: dict[str, Learner], impl: str) -> None:
        learner, x = learners[impl], torch.rand(5, 784, dtype=torch.float64)
        before = learner.state_dict()["model"]
        together, alone = learner.activations(x), learner.activations(x[:1])
        for name, a in alone.items():  # with the batch's own statistics an example's would depend on the others
            torch.testing.assert_close(a, together[name][:1], rtol=1e-12, atol=1e-12)
        after = learner.state_dict()["model"]
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
        if "stage1.norm" in alone:  # and training still is in training mode
            y = torch.arange(5) % 3
            buffers = learner.backpropagate(x, y).buffers
            assert not torch.equal(buffers["stage1.norm.running_mean"], before["stage1.norm.running_mean"])

    @IMPLEMENTATIONS
    def test_of_the_first_layer_against_its_definition(self, learners: dict[str, Learner], impl: str) -> None:
        x = torch.rand(2, 784, dtype=torch.float64)
        a, p = learners[impl].activations(x), learners[impl].state_dict()["model"]
        pictures = x.view(2, 1, 28, 28)
        if "C1" in a:
            z = F.conv2d(pictures, p["C1.weight"], p["C1.bias"], padding=2)
            torch.testing.assert_close(a["C1"], 1.7159 * torch.tanh(2 / 3 * z), rtol=1e-12, atol=1e-12)
        else:
            z = F.max_pool2d(F.conv2d(pictures, p["stage1.conv.weight"], padding=1), 2)
            m, v, gamma, beta = (p[f"stage1.norm.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
            z = F.batch_norm(z, m, v, gamma, beta, training=False)
            torch.testing.assert_close(a["stage1.norm"], z.relu(), rtol=1e-12, atol=1e-12)


def depth(colors: np.ndarray) -> np.ndarray:
    """From -1, blue, over 0, white, to 1, red."""
    reddish = colors[..., 0] > colors[..., 2]
    return np.where(reddish, (255 - colors[..., 1]) / (255 - RED[1]), -(255 - colors[..., 1]) / (255 - BLUE[1]))


class TestFeatureMaps:
    def test_a_known_filter_on_a_known_picture(self, tmp_path: Path) -> None:
        """LeNet-5, in C1 all zeros but for two maps: the picture itself, and its negative a pixel further down."""
        data = random_pictures((28, 28))
        learner = learner_of(replace(LENET5, impl="manual"), data)
        for parameter in learner.parameters.values():
            parameter.zero_()
        learner.parameters["C1.weight"][1, 0, 2, 2] = 1.0
        learner.parameters["C1.weight"][4, 0, 1, 2] = -1.0
        a = learner.activations(data.test.batch(torch.arange(1), torch.float32)[0])
        image = written(tmp_path / "run", data, "images/feature_maps", "feature_maps", a)
        assert image is not None

        shown = data.test.x[0].view(28, 28)
        top = LABEL + 2
        assert (image[top : top + 112 : 4, 2 : 2 + 112 : 4] == shown[..., None].numpy()).all()
        assert (image[top + 3 : top + 112 : 4, 5 : 2 + 112 : 4] == shown[..., None].numpy()).all()  # the same pixel

        top += 112 + 2 + LABEL + 2
        maps = [image[top : top + 56 : 2, 2 + 58 * c : 2 + 58 * c + 56 : 2] for c in range(6)]
        expected = 1.7159 * np.tanh(2 / 3 * shown.double().numpy() / 255)
        full = np.quantile(np.abs([0 * expected] * 4 + [expected, np.pad(expected, ((1, 0), (0, 0)))[:28]]), 0.99)
        assert depth(maps[1]) == pytest.approx(np.minimum(expected / full, 1), abs=0.01)
        assert depth(maps[4][1:]) == pytest.approx(-np.minimum(expected[:-1] / full, 1), abs=0.01)
        assert (maps[4][0] == WHITE).all()
        assert all((maps[c] == WHITE).all() for c in (0, 2, 3, 5))
        assert image.shape[0] == 4 * LABEL + 116 + (56 + 4) + (60 + 4) + (64 + 4)  # C1, C3 and C5 are maps, F6 is not

    def test_each_layer_has_a_scale_of_its_own_and_at_most_16_maps(self) -> None:
        maps = {"a": torch.full((40, 2, 2), 1e-3), "b": torch.full((2, 4, 4), -1e3)}
        image = colors_of(feature_maps(torch.zeros(1, 4, 4), maps))
        assert image.shape == (3 * LABEL + (128 + 4) + 2 * (64 + 4), 16 * 66 + 2, 3)
        a = image[2 * LABEL + 132 + 2 :][:64]
        b = image[3 * LABEL + 132 + 68 + 2 :][:64]
        assert all((a[:, 2 + 66 * c : 66 + 66 * c] == RED).all() for c in range(16))
        assert all((b[:, 2 + 66 * c : 66 + 66 * c] == BLUE).all() for c in range(2))
        assert (b[:, 2 * 66 + 2 :] == WHITE).all()  # nothing more

    def test_labels(self) -> None:
        """Text is above every row, another for another name."""
        images = [colors_of(feature_maps(torch.zeros(1, 4, 4), {name: torch.ones(9, 4, 4)})) for name in ("C1", "C3")]
        label = [image[LABEL + 132 : 2 * LABEL + 132] for image in images]
        assert all((strip < 100).any() for strip in label)
        assert (label[0] != label[1]).any()

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=["bytes", "floating point"])
    def test_a_picture_of_three_channels_is_in_color(self, dtype: torch.dtype) -> None:
        colors = torch.randint(256, (3, 8, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        colors[0, 0, 0], colors[1, 0, 0] = 0, 255
        picture = colors if dtype == torch.uint8 else colors.float() * 0.3 - 5
        image = colors_of(feature_maps(picture, {"a": torch.ones(1, 2, 2)}))
        seen = image[LABEL + 2 : LABEL + 2 + 128 : 16, 2 : 2 + 64 : 16]
        assert (seen == colors.permute(1, 2, 0).numpy()).all()

    def test_channels_that_are_no_colors_are_side_by_side(self) -> None:
        colors = torch.tensor([10, 200]).byte().view(2, 1, 1).expand(2, 4, 4)
        image = colors_of(feature_maps(colors, {"a": torch.ones(1, 2, 2)}))
        assert (image[LABEL + 2 : LABEL + 130, 2:130] == 10).all()
        assert (image[LABEL + 2 : LABEL + 130, 132:260] == 200).all()

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_what_is_not_finite_is_black(self, tmp_path: Path, bad: float) -> None:
        data = random_pictures((4, 4))
        a = {"a": torch.tensor([1.0, bad, -1.0, bad]).view(1, 1, 2, 2), "b": torch.full((1, 3, 2, 2), bad)}
        image = written(tmp_path / "run", data, "images/feature_maps", "feature_maps", a)
        assert image is not None
        top = 2 * LABEL + 132 + 2
        assert image[top : top + 64 : 32, 2:66:32].tolist() == [[RED, BLACK], [BLUE, BLACK]]
        top += 66 + LABEL + 2
        assert (image[top : top + 64, 2:66] == 0).all()

    @pytest.mark.parametrize(
        "values",
        [
            pytest.param(torch.zeros(200), id="zeros"),
            pytest.param(torch.eye(200)[3] * 3e38, id="one large value among zeros"),
            pytest.param(torch.eye(200)[3] * 1e-3, id="one small value among zeros"),
            pytest.param(torch.eye(200)[3].double() * 1e308 + 1e-300, id="beyond any scale"),
            pytest.param(torch.ones(200).bfloat16(), id="bfloat16"),
        ],
    )
    def test_values_of_any_size(self, values: Tensor) -> None:
        image = colors_of(feature_maps(torch.rand(1, 4, 4), {"a": values.view(2, 10, 10)}))
        at_3 = image[2 * LABEL + 132 + 2, 2 + 3 * 6]
        assert at_3.tolist() == (RED if values[3] else WHITE)

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_a_picture_that_is_not_finite(self, bad: float) -> None:
        picture = torch.tensor([[[5.0, bad], [6.0, 7.0]]])
        image = colors_of(feature_maps(picture, {"a": torch.ones(1, 1, 1)}))
        assert image[LABEL + 2 : LABEL + 130 : 64, 2:130:64, 0].tolist() == [[0, 0], [128, 255]]
        feature_maps(torch.full((1, 2, 2), bad), {"a": torch.ones(1, 1, 1)})

    def test_large_pictures_are_thinned_out(self) -> None:
        a = torch.zeros(1, 200, 100)
        a[0, 100:] = 1.0
        image = colors_of(feature_maps(torch.zeros(1, 200, 100), {"a": a}))
        assert image.shape[0] == 2 * LABEL + (100 + 4) + (50 + 4)
        assert (image[-52:-27, 2:27] == WHITE).all()
        assert (image[-27:-2, 2:27] == RED).all()

    @pytest.mark.parametrize(
        ("shape", "a"),
        [
            ((4, 4), {"layer1": torch.ones(1, 9)}),
            ((4, 4), {}),
            ((4, 4), {"a": torch.ones(1, 0, 3, 3)}),
            ((16,), {"a": torch.ones(1, 2, 3, 3)}),
        ],
        ids=["no maps", "nothing", "empty", "no pictures"],
    )
    def test_only_where_there_are_maps_of_pictures(self, tmp_path: Path, shape: tuple[int, ...], a: dict) -> None:
        assert written(tmp_path / "run", random_pictures(shape), "", "feature_maps", a) is None


class TestFilters:
    def cell(self, image: np.ndarray, row: int, column: int, zoom: int, side: int) -> np.ndarray:
        top, left = row * (side * zoom + 6) + 6, column * (side * zoom + 6) + 6
        return image[top : top + side * zoom : zoom, left : left + side * zoom : zoom]

    def test_one_channel(self, tmp_path: Path) -> None:
        kernels = torch.zeros(6, 1, 5, 5)
        kernels[1], kernels[3, 0, 1, 2], kernels[5, 0, 4, 0] = 2.0, -2.0, math.nan
        parameters = {"stem.bias": torch.ones(6), "conv.weight": kernels, "conv2.weight": torch.ones(3, 6, 2, 2)}
        image = written(tmp_path / "run", random_pictures((28, 28)), "images/filters", "pictures", parameters)
        assert image is not None
        zoom = 400 // (3 * 5)
        assert image.shape == (2 * (5 * zoom + 6) + 6, 3 * (5 * zoom + 6) + 6, 3)
        cells = [self.cell(image, i // 3, i % 3, zoom, 5) for i in range(6)]
        assert (cells[0] == WHITE).all()
        assert (cells[1] == RED).all()
        assert cells[3][1, 2].tolist() == BLUE
        assert cells[5][4, 0].tolist() == BLACK
        assert sum((c == WHITE).all(axis=2).sum() for c in cells) == 6 * 25 - 25 - 1 - 1

    def test_three_channels_are_side_by_side(self) -> None:
        kernels = torch.zeros(8, 3, 3, 3)
        kernels[5, 2], kernels[4, 0] = 1.0, -1.0
        image = colors_of(filter_pictures(kernels))
        columns = 6  # two outputs a row
        cells = [self.cell(image, i // columns, i % columns, 400 // (columns * 3), 3) for i in range(24)]
        colored = {i: c[0, 0].tolist() for i, c in enumerate(cells) if (c != WHITE).any()}
        assert colored == {3 * 5 + 2: RED, 3 * 4: BLUE}

    @pytest.mark.parametrize(
        ("shape", "size"),
        [((40, 3, 3, 3), (12 * (3 * 11 + 6) + 6, 9 * (3 * 11 + 6) + 6)), ((2, 150, 1, 1), (100 * 10 + 6, 16))],
        ids=["33 outputs of three", "100 channels of one output"],
    )
    def test_at_most_a_hundred(self, shape: tuple[int, int, int, int], size: tuple[int, int]) -> None:
        picture = filter_pictures(torch.randn(shape))
        assert picture.size == size
        fourth = colors_of(picture)[-9, 123:156]  # of the last row, in which 33 outputs of three leave three cells
        assert (fourth == 190).all() == (shape[0] == 40)

    @pytest.mark.parametrize("value", [0.0, math.nan])
    def test_without_a_scale(self, value: float) -> None:
        colors = colors_of(filter_pictures(torch.full((4, 1, 3, 3), value)))
        assert set(map(tuple, colors.reshape(-1, 3))) == {(190,) * 3, (255,) * 3 if value == 0 else (0,) * 3}


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

    @pytest.mark.parametrize("value", [0.0, math.nan, math.inf, 1e-300, 1e300, 1.0])
    def test_values_all_the_same(self, value: float) -> None:
        figures.gradient_by_depth({"a": value}, {})

    @pytest.mark.parametrize("impl", ["manual", "reference"])
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
        assert written(tmp_path / "run", data, "images/gradient_by_depth", "gradient_by_depth", result) is not None
        ((deltas, weights),) = charts
        layers = list(deltas)
        if model == "mlp":
            assert layers == ["layer1", "layer2", "layer3"] == list(weights)
        else:
            stages = [
                f"stage{s}.{layer}"
                for s in (1, 2)
                for layer in ("conv", "pool", "norm", *(f"block1.{k}{i}" for i in (1, 2) for k in ("conv", "norm")))
            ]
            assert layers == [*stages, "pool", "linear"]
            assert list(weights) == [name for name in layers if "conv" in name or name == "linear"]
        for name in layers:
            d = result.deltas[name]
            assert deltas[name] == pytest.approx((d.norm() / d.numel() ** 0.5).item(), rel=1e-12)
        for name, value in weights.items():
            g = result.gradients[f"{name}.weight"]
            assert value == pytest.approx((g.norm() / g.numel() ** 0.5).item(), rel=1e-12)

    @pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
    def test_gradients_that_are_not_finite_or_zero(self, tmp_path: Path, bad: float) -> None:
        data = load("points")
        result = learner_of(configure(hidden=(5,)), data).backpropagate(
            *data.train.batch(torch.arange(7), torch.float32)
        )
        spoiled = replace(
            result,
            deltas={name: torch.full_like(d, bad) for name, d in result.deltas.items()},
            gradients={name: torch.full_like(g, bad) for name, g in result.gradients.items()},
        )
        assert written(tmp_path / "run", data, "images/gradient_by_depth", "gradient_by_depth", spoiled) is not None
