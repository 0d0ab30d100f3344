"""What a run writes is what TensorBoard's own reader, and a reader of metrics.jsonl, gets back."""

import io
import json
import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from tests.support.running import learner_of
from training.config import Config
from training.dashboard import figures
from training.dashboard.metrics import read_metrics
from training.dashboard.tensorboard import MetricsWriter
from training.dashboard.weight_images import GRID_PIXELS, weight_pictures
from training.data import Dataset, load
from training.data.dataset import Split
from training.families.configure import configure
from training.learners.base import Backpropagation
from training.loop import Loop

EVERYTHING = {"scalars": 0, "histograms": 0, "images": 0, "tensors": 0}

OpenRun = Callable[..., MetricsWriter]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def open_run(run_dir: Path) -> Iterator[OpenRun]:
    """Opens a writer on the run directory; all are closed at the end."""
    run_dir.mkdir()
    writers = []

    def open_writer(start_step: int = 0, config: Config | None = None, data: Dataset | None = None) -> MetricsWriter:
        environment = {"torch": torch.__version__, "threads": 1}
        writer = MetricsWriter(
            run_dir, config or configure(), data or digits(), start_step=start_step, environment=environment
        )
        writers.append(writer)
        return writer

    yield open_writer
    for writer in writers:
        writer.close()


def digits(shape: tuple[int, ...] = (4, 5), classes: int = 3, examples: int = 12) -> Dataset:
    """Random pictures of an odd shape."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (examples, math.prod(shape)), generator=generator, dtype=torch.uint8)
    y = torch.arange(examples) % classes
    return Dataset("npz", Split(x, y), Split(x, y), shape, tuple(f"class {i}" for i in range(classes)), "random")


def events(run_dir: Path) -> EventAccumulator:
    return EventAccumulator(str(run_dir), size_guidance=EVERYTHING).Reload()


def scalars(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    reader = events(run_dir)
    return {tag: [(e.step, e.value) for e in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def metrics(run_dir: Path) -> list[dict]:
    return list(read_metrics(run_dir / "metrics.jsonl"))


def event_file(run_dir: Path) -> Path:
    (path,) = run_dir.glob("events.out.tfevents.*")
    return path


class TestScalars:
    def test_events_hold_every_tag_step_and_value(self, open_run: OpenRun, run_dir: Path) -> None:
        writer = open_run()
        for step in (0, 7, 60_000):
            writer.scalars(step, {"loss/train": 0.1 + step, "gradient_norm/layer1.weight": 1e-9})
        writer.scalars(60_000, {"accuracy/test": 0.9521})
        writer.close()
        assert scalars(run_dir) == {
            "loss/train": [(step, float(np.float32(0.1 + step))) for step in (0, 7, 60_000)],
            "gradient_norm/layer1.weight": [(step, float(np.float32(1e-9))) for step in (0, 7, 60_000)],
            "accuracy/test": [(60_000, float(np.float32(0.9521)))],
        }

    def test_metrics_hold_them_in_full_precision(self, open_run: OpenRun, run_dir: Path) -> None:
        writer = open_run()
        writer.scalars(3, {"loss/train": 1 / 3, "learning_rate": 1e300})
        writer.scalars(4, {"loss/test": 0.1})
        assert metrics(run_dir) == [
            {"step": 3, "loss/train": 1 / 3, "learning_rate": 1e300},
            {"step": 4, "loss/test": 0.1},
        ]

    def test_what_is_not_finite_is_null_in_metrics_and_itself_in_events(self, open_run: OpenRun, run_dir: Path) -> None:
        writer = open_run()
        writer.scalars(0, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 2.0})
        writer.close()
        text = (run_dir / "metrics.jsonl").read_text()
        assert json.loads(text, parse_constant=pytest.fail) == {"step": 0, "a": None, "b": None, "c": None, "d": 2.0}
        values = {tag: value for tag, [(_, value)] in scalars(run_dir).items()}
        assert math.isnan(values.pop("a"))
        assert values == {"b": math.inf, "c": -math.inf, "d": 2.0}

    def test_flush_makes_them_readable_while_the_run_goes_on(self, open_run: OpenRun, run_dir: Path) -> None:
        writer = open_run()
        writer.scalars(1, {"loss/train": 0.5})
        writer.flush()
        assert scalars(run_dir) == {"loss/train": [(1, 0.5)]}


def kill(run_dir: Path) -> None:
    """Leave both files as a killed process may: with the last record cut off."""
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "loss/tr')
    path = event_file(run_dir)
    path.write_bytes(path.read_bytes()[:-7])


def stop_in_this_second(run_dir: Path) -> None:
    """Give the event file a name that comes after any other of this second."""
    event_file(run_dir).rename(run_dir / f"events.out.tfevents.{int(time.time()):010d}.~")


class TestResume:
    @pytest.mark.parametrize(
        "interrupt",
        [
            pytest.param(lambda run_dir: None, id="after a clean stop"),
            pytest.param(kill, id="after a kill"),
            pytest.param(stop_in_this_second, id="within a second"),
        ],
    )
    def test_no_step_is_there_twice(self, open_run: OpenRun, run_dir: Path, interrupt: Callable[[Path], None]) -> None:
        writer = open_run()
        for step in range(7):
            writer.scalars(step, {"loss/train": float(step)})
        writer.close()
        interrupt(run_dir)
        writer = open_run(start_step=4)
        for step in range(4, 9):
            writer.scalars(step, {"loss/train": 100.0 + step})
        writer.close()
        expected = [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0), *((step, 100.0 + step) for step in range(4, 9))]
        assert scalars(run_dir) == {"loss/train": expected}
        assert [(m["step"], m["loss/train"]) for m in metrics(run_dir)] == expected

    def test_pictures_and_histograms_are_not_there_twice_either(self, open_run: OpenRun, run_dir: Path) -> None:
        for start in (0, 2):
            writer = open_run(start)
            for step in range(start, 3):
                writer.pictures(step, {"layer1.weight": torch.randn(3, 20)})
                writer.histograms(step, {"layer1.weight": torch.randn(3, 20)}, NOTHING)
            writer.close()
        reader = events(run_dir)
        assert [e.step for e in reader.Images("images/first_layer_weights")] == [0, 1, 2]
        assert [e.step for e in reader.Histograms("weights/layer1")] == [0, 1, 2]

    def test_a_fresh_run_starts_metrics_anew(self, open_run: OpenRun, run_dir: Path) -> None:
        (run_dir / "metrics.jsonl").write_text('{"step": 0, "loss/train": 9.0}\n')
        open_run().scalars(0, {"loss/train": 1.0})
        assert metrics(run_dir) == [{"step": 0, "loss/train": 1.0}]

    def test_a_run_without_metrics_goes_on(self, open_run: OpenRun, run_dir: Path) -> None:
        open_run(start_step=5).scalars(5, {"loss/train": 1.0})
        assert metrics(run_dir) == [{"step": 5, "loss/train": 1.0}]


NOTHING = Backpropagation(torch.tensor(0.0), gradients={}, deltas={}, outputs={}, buffers={}, memory={})


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def double(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def histograms(run_dir: Path) -> dict[str, list]:
    reader = events(run_dir)
    return {tag: reader.Histograms(tag) for tag in reader.Tags()["histograms"]}


class TestHistograms:
    @pytest.mark.parametrize("impl", ["manual", "reference", "both"])
    def test_tags_and_counts_of_a_network(self, open_run: OpenRun, run_dir: Path, impl: str) -> None:
        data = load("points")
        config = configure(impl=impl, hidden=(5,), dtype="float64")
        learner = learner_of(config, data)
        result = learner.backpropagate(*data.train.batch(torch.arange(7), torch.float64))
        writer = open_run(config=config, data=data)
        for step in (0, 1000):
            writer.histograms(step, learner.parameters, result)
        writer.close()
        read = histograms(run_dir)
        assert {tag: event.histogram_value.num for tag, (event, _) in read.items()} == {
            "weights/layer1": 5 * 2,
            "weights/layer2": 2 * 5,
            "biases/layer1": 5,
            "biases/layer2": 2,
            "gradients/layer1.weight": 5 * 2,
            "gradients/layer2.weight": 2 * 5,
            "gradients/layer1.bias": 5,
            "gradients/layer2.bias": 2,
            "deltas/layer1": 7 * 5,
            "deltas/layer2": 7 * 2,
            "deltas/output": 7 * 2,
            "activations/layer1": 7 * 5,
            "activations/layer2": 7 * 2,
        }
        assert all([event.step for event in pair] == [0, 1000] for pair in read.values())

    @pytest.mark.parametrize(
        ("name", "tag"),
        [
            ("layer1.weight", "weights/layer1"),
            ("blocks.3.norm.bias", "biases/blocks.3.norm"),
            ("embedding", "parameters/embedding"),
            ("norm.gain", "parameters/norm.gain"),
            ("weight", "parameters/weight"),
        ],
    )
    def test_tag_of_a_parameter(self, open_run: OpenRun, run_dir: Path, name: str, tag: str) -> None:
        writer = open_run()
        writer.histograms(0, {name: torch.ones(2)}, NOTHING)
        writer.close()
        assert list(histograms(run_dir)) == [tag]

    @pytest.mark.parametrize(
        ("tensor", "kept"),
        [
            pytest.param(normal(3, 50), slice(None), id="normal"),
            pytest.param(normal(500).bfloat16(), slice(None), id="bfloat16"),
            pytest.param(torch.tensor(2.5), slice(None), id="scalar"),
            pytest.param(torch.zeros(9), slice(None), id="zeros"),
            pytest.param(torch.full((9,), -3.0), slice(None), id="constant"),
            pytest.param(double([1.0, 1.0 + 2**-52]), slice(None), id="two neighbors"),
            pytest.param(double([1e-40, 1e-320, 0.0]), slice(None), id="subnormal"),
            pytest.param(torch.tensor([1e30, -1e38]), slice(None), id="large"),
            pytest.param(torch.tensor([math.nan, 1.0, -2.0, math.inf, -math.inf]), slice(1, 3), id="some not finite"),
            pytest.param(double([1e300, 1.0, 2.0, -1e300]), slice(1, 3), id="some too large to square"),
        ],
    )
    def test_every_finite_value_is_counted(
        self, open_run: OpenRun, run_dir: Path, tensor: torch.Tensor, kept: slice
    ) -> None:
        writer = open_run()
        writer.histograms(0, {"w": tensor}, NOTHING)
        writer.close()
        values = tensor.double().flatten()[kept]
        ((event,),) = histograms(run_dir).values()
        histogram = event.histogram_value
        assert (histogram.num, histogram.min, histogram.max) == (len(values), values.min(), values.max())
        assert histogram.sum == pytest.approx(values.sum().item())
        assert histogram.sum_squares == pytest.approx(values.square().sum().item())
        assert sum(histogram.bucket) == len(values)
        edges = np.array(histogram.bucket_limit)
        assert len(edges) == 65
        assert (np.diff(edges) > 0).all()
        assert edges[0] < values.min() <= values.max() < edges[-1]

    def test_buckets_lie_where_the_values_do(self, open_run: OpenRun, run_dir: Path) -> None:
        values = torch.cat([torch.linspace(-1, 0, 1000), torch.linspace(2.5, 3, 200)])
        writer = open_run()
        writer.histograms(0, {"w": values}, NOTHING)
        writer.close()
        ((event,),) = histograms(run_dir).values()
        right = np.array(event.histogram_value.bucket_limit)
        counts = np.array(event.histogram_value.bucket)
        assert counts[right <= 0].sum() == pytest.approx(1000, abs=70)  # a bucket may straddle 0
        assert counts[(right > 0.1) & (right < 2.5)].sum() == 0
        assert counts[right >= 2.5].sum() == 200

    @pytest.mark.parametrize("values", [[], [math.nan, math.nan], [math.inf]], ids=["empty", "nan", "infinite"])
    def test_a_tensor_without_finite_values_is_left_out(
        self, open_run: OpenRun, run_dir: Path, values: list[float]
    ) -> None:
        writer = open_run()
        result = replace(NOTHING, gradients={"layer1.weight": torch.tensor(values)}, deltas={"layer1": torch.ones(1)})
        writer.histograms(0, {}, result)
        writer.close()
        assert list(histograms(run_dir)) == ["deltas/layer1"]


def pixels(encoded: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB")).astype(int)


def cell(grid: np.ndarray, row: int, column: int, zoom: int, shape: tuple[int, int]) -> np.ndarray:
    """One neuron's picture of a grid with lines of two pixels, at its original size."""
    height, width = (side * zoom + 2 for side in shape)
    top, left = row * height + 2, column * width + 2
    return grid[top : top + height - 2 : zoom, left : left + width - 2 : zoom]


class TestPictures:
    def test_size_sign_and_place(self, open_run: OpenRun, run_dir: Path) -> None:
        weights = torch.zeros(3, 20)
        weights[0] = 1.0
        weights[1] = -1.0
        weights[2, 7] = 1.0  # row 1, column 2 of a 4×5 picture
        writer = open_run()
        parameters = {"embedding": torch.ones(2, 7), "layer1.bias": torch.zeros(3), "layer1.weight": weights}
        parameters |= {"layer2.weight": torch.ones(2, 20)}
        writer.pictures(100, parameters)
        writer.close()
        (event,) = events(run_dir).Images("images/first_layer_weights")
        grid = pixels(event.encoded_image_string)
        zoom = GRID_PIXELS // (2 * 5)  # two columns of neurons
        assert event.step == 100
        assert grid.shape == (2 * (4 * zoom + 2) + 2, 2 * (5 * zoom + 2) + 2, 3)
        assert (event.height, event.width) == grid.shape[:2]
        red, blue, point = (cell(grid, *place, zoom, (4, 5)) for place in ((0, 0), (0, 1), (1, 0)))
        assert (red == [178, 24, 43]).all()
        assert (blue == [33, 102, 172]).all()
        assert (point[1, 2] == [178, 24, 43]).all()
        assert (np.delete(point.reshape(-1, 3), 7, axis=0) == 255).all()

    def test_depth_of_color_is_in_proportion_to_the_weight(self) -> None:
        weights = torch.tensor([[-1.0, -0.5, 0.0, 0.25, 1.0, 1.0]])
        grid = np.asarray(weight_pictures(weights, (2, 3)).convert("RGB")).astype(float)
        colors = cell(grid, 0, 0, GRID_PIXELS // 3, (2, 3)).reshape(6, 3)
        depth = (255 - colors[:, 1]) / (255 - np.where(weights[0] < 0, 102, 24))  # by its green
        assert depth == pytest.approx([1, 0.5, 0, 0.25, 1, 1], abs=0.01)

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_what_is_not_finite_is_black(self, bad: float) -> None:
        weights = torch.tensor([[1.0, bad, -1.0, bad]])
        colors = cell(np.asarray(weight_pictures(weights, (2, 2)).convert("RGB")), 0, 0, GRID_PIXELS // 2, (2, 2))
        assert (colors == 0).all(axis=2).tolist() == [[False, True], [False, True]]

    @pytest.mark.parametrize("value", [0.0, math.nan])
    def test_weights_without_a_scale(self, value: float) -> None:
        colors = np.asarray(weight_pictures(torch.full((4, 6), value), (2, 3)).convert("RGB"))
        assert set(map(tuple, colors.reshape(-1, 3))) == {(190,) * 3, (255,) * 3 if value == 0 else (0,) * 3}

    def test_at_most_a_hundred_neurons(self) -> None:
        many = torch.randn(150, 784, generator=torch.Generator().manual_seed(0))
        assert weight_pictures(many, (28, 28)) == weight_pictures(many[:100], (28, 28))
        assert weight_pictures(many, (28, 28)).size == (10 * 30 + 2, 10 * 30 + 2)

    @pytest.mark.parametrize("shape", [(20,), (2,)], ids=["features", "points"])
    def test_only_where_examples_are_pictures(self, open_run: OpenRun, run_dir: Path, shape: tuple[int, ...]) -> None:
        writer = open_run(data=digits(shape))
        writer.pictures(0, {"layer1.weight": torch.ones(3, *shape)})
        writer.close()
        assert events(run_dir).Tags()["images"] == []


class TestFinalFigures:
    def outputs(self, data: Dataset, right: int) -> torch.Tensor:
        """Sure of the right class for the first `right` examples, and of another for the rest."""
        y = data.test.y.clone()
        y[right:] = (y[right:] + 1) % len(data.classes)
        return torch.nn.functional.one_hot(y, len(data.classes)).float()

    @pytest.mark.parametrize(
        ("shape", "right", "expected"),
        [
            ((4, 5), 9, {"confusion_matrix", "mistakes"}),
            ((4, 5), 12, {"confusion_matrix"}),
            ((2,), 9, {"confusion_matrix", "decision_boundary"}),
            ((7,), 9, {"confusion_matrix"}),
        ],
        ids=["pictures", "pictures without a mistake", "points", "features"],
    )
    def test_which_there_are(
        self, open_run: OpenRun, run_dir: Path, shape: tuple[int, ...], right: int, expected: set[str]
    ) -> None:
        data = digits(shape)
        writer = open_run(data=data)
        writer.final_figures(
            40, self.outputs(data, right), data.test.y, lambda x: torch.stack([x[:, 0], x[:, 1], -x[:, 0]], dim=1)
        )
        writer.close()
        reader = events(run_dir)
        assert set(reader.Tags()["images"]) == {f"images/{name}" for name in expected}
        for tag in reader.Tags()["images"]:
            (event,) = reader.Images(tag)
            assert event.step == 40
            assert pixels(event.encoded_image_string).shape == (event.height, event.width, 3)

    def test_the_plane_is_asked_about_in_the_units_of_the_networks_inputs(self, open_run: OpenRun) -> None:
        data = digits((2,))  # bytes, which the network sees from 0 to 1
        asked = []
        open_run(data=data).final_figures(0, self.outputs(data, 9), data.test.y, lambda x: asked.append(x) or x)
        ((low, high),) = [x.aminmax() for x in asked]
        assert -0.1 < low < 0.2
        assert 0.8 < high < 1.1

    @pytest.mark.parametrize("loss", ["softmax-cross-entropy", "sigmoid-cross-entropy", "quadratic"])
    def test_outputs_of_any_kind(self, open_run: OpenRun, run_dir: Path, loss: str) -> None:
        data = digits()
        writer = open_run(data=data, config=configure(loss=loss))
        outputs = 1e4 * self.outputs(data, 6).bfloat16()
        outputs[0] = math.nan
        writer.final_figures(1, outputs, data.test.y, lambda x: x)
        writer.close()
        assert set(events(run_dir).Tags()["images"]) == {"images/confusion_matrix", "images/mistakes"}

    def test_the_prediction_is_the_largest_output(self, open_run: OpenRun, run_dir: Path) -> None:
        data = digits()
        writer = open_run(data=data)
        writer.final_figures(1, self.outputs(data, 8), data.test.y, lambda x: x)
        writer.close()
        predictions = torch.tensor([*data.test.y[:8], *data.test.y[8:] + 1]) % 3
        (event,) = events(run_dir).Images("images/confusion_matrix")
        expected = figures.confusion_matrix(data.test.y, predictions, data.classes)
        assert (pixels(event.encoded_image_string) == np.asarray(expected)).all()


def hparams(run_dir: Path, tag: str) -> HParamsPluginData:
    return HParamsPluginData.FromString(events(run_dir).SummaryMetadata(f"_hparams_/{tag}").plugin_data.content)


class TestConfiguration:
    def test_text(self, open_run: OpenRun, run_dir: Path) -> None:
        open_run(config=configure(hidden=(30, 7), lr=0.125)).close()
        open_run(start_step=1, config=configure(hidden=(30, 7), lr=0.125)).close()
        reader = events(run_dir)
        (config,) = reader.Tensors("config/text_summary")  # once, though the run was resumed
        (text,) = config.tensor_proto.string_val
        rows = text.decode().splitlines()
        assert "| hidden | `[30, 7]` |" in rows
        assert "| lr | `0.125` |" in rows
        assert len(rows) == 2 + len(fields(configure()))
        (environment,) = reader.Tensors("environment/text_summary")
        assert f'| torch | `"{torch.__version__}"` |' in environment.tensor_proto.string_val[0].decode()

    def test_hparams_of_the_run_itself(self, open_run: OpenRun, run_dir: Path) -> None:
        writer = open_run(config=configure(hidden=(30, 7), activation=("tanh",), lr=0.125))
        writer.scalars(60, {"accuracy/test": 0.75})
        writer.hparams({"hparam/accuracy": 0.75})
        writer.close()
        values = hparams(run_dir, "session_start_info").session_start_info.hparams
        apart = {"data_dir", "device", "threads", "check_every", "log_every", "histogram_every"}
        assert set(values) == {field.name for field in fields(configure())} - apart
        assert values["hidden"].string_value == "30 7"
        assert values["activation"].string_value == "tanh"
        assert values["lr"].number_value == 0.125
        experiment = hparams(run_dir, "experiment").experiment
        assert [info.name.tag for info in experiment.metric_infos] == ["hparam/accuracy"]
        assert scalars(run_dir)["hparam/accuracy"] == [(60, 0.75)]
        assert metrics(run_dir)[-1] == {"step": 60, "hparam/accuracy": 0.75}
        assert not [path for path in run_dir.parent.rglob("*") if path.is_dir() and path != run_dir]
        event_file(run_dir)  # the only one

    def test_hparams_of_a_run_that_had_nothing_left_to_do(self, open_run: OpenRun, run_dir: Path) -> None:
        writer = open_run(start_step=61)
        writer.hparams({"hparam/accuracy": 0.75})
        writer.close()
        assert scalars(run_dir) == {"hparam/accuracy": [(60, 0.75)]}


class SilentConsole:
    def steps(self, done: int) -> None: ...

    def evaluated(self, epoch: int, step: int, values: dict[str, float]) -> None: ...


@pytest.mark.parametrize("dataset", ["points", "sample"])
def test_metrics_md_explains_every_tag_of_a_run(open_run: OpenRun, run_dir: Path, dataset: str) -> None:
    data = load(dataset)
    config = configure(impl="both", dtype="float64", max_steps=2, log_every=1, histogram_every=1)
    writer = open_run(config=config, data=data)
    loop = Loop(config, data, learner_of(config, data), writer, SilentConsole(), run_dir)
    loop.run()
    loop.final_figures()
    writer.close()
    tags = events(run_dir).Tags()
    explained = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert len(tags["scalars"]) == 3 + 3 + 2 * 6 + 1 + 2
    for tag in (*tags["scalars"], *tags["histograms"], *tags["images"]):
        family = re.escape(tag.split("/")[0]) + "/<(parameter|layer|name)>"
        assert re.search(f"`({re.escape(tag)}|{family})`", explained), f"docs/metrics.md does not explain {tag}"
