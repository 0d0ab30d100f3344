"""What a run writes is what TensorBoard's own reader, and a reader of metrics.jsonl, gets back; and what it prints."""

import json
import math
import os
import re
import time
from dataclasses import fields, replace
from html import unescape

import numpy as np
import pytest
import torch
from markdown import markdown
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from tests.support.dashboard import NOTHING, colors_of, events, image_steps, images, random_pictures, texts, writing
from tests.support.running import learner_of, metrics
from training.config import Config
from training.dashboard import figures
from training.dashboard.console import RunConsole
from training.data import Split, Streams, load
from training.families.configure import configure
from training.tasks import CLASSIFICATION, NEXT_TOKEN


def scalars(run_dir):
    reader = events(run_dir)
    return {tag: [(e.step, e.value) for e in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def event_file(run_dir):
    (path,) = run_dir.glob("events.out.tfevents.*")
    return path


def hparams_of(run_dir):
    """Name and value of each, and the experiment."""
    session, experiment = (
        HParamsPluginData.FromString(events(run_dir).SummaryMetadata(f"_hparams_/{tag}").plugin_data.content)
        for tag in ("session_start_info", "experiment")
    )
    found = session.session_start_info.hparams
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in found.items()}, experiment


HPARAMS = {
    "mlp": ({"optimizer": "adam", "l2": 0.1, "seed": 3}, "hidden betas eps l2"),
    "step": ({"optimizer": "nesterov", "schedule": "step", "lr_epochs": 3}, "hidden momentum lr_epochs lr_factor"),
    "cnn": ({"model": "cnn", "blocks": 0, "optimizer": "muon"}, "channels blocks betas eps momentum"),
    "lenet5": ({"model": "lenet5", "warmup": 4}, "warmup"),
}


class TestScalars:
    def test_every_tag_step_and_value_is_there_in_full_precision_in_metrics(self, tmp_path):
        """And once they are flushed, while the run goes on."""
        single = {step: float(np.float32(1 / 3 + step)) for step in (0, 7, 60_000)}
        lines = [{"step": step, "loss/train": 1 / 3 + step, "learning_rate": 1e-300} for step in single]
        with writing(tmp_path) as writer:
            for line in lines:
                writer.scalars(line["step"], {tag: line[tag] for tag in ("loss/train", "learning_rate")})
            writer.flush()
            expected = {"loss/train": list(single.items()), "learning_rate": [(step, 0.0) for step in single]}
            assert scalars(tmp_path) == expected
            writer.scalars(60_000, {"accuracy/test": 0.9375})
        assert scalars(tmp_path) == expected | {"accuracy/test": [(60_000, 0.9375)]}
        assert metrics(tmp_path) == [*lines, {"step": 60_000, "accuracy/test": 0.9375}]

    def test_what_is_not_finite_is_null_in_metrics_and_itself_in_events(self, tmp_path):
        with writing(tmp_path) as writer:
            writer.scalars(0, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 2.0})
        text = (tmp_path / "metrics.jsonl").read_text()
        assert json.loads(text, parse_constant=pytest.fail) == {"step": 0, "a": None, "b": None, "c": None, "d": 2.0}
        values = {tag: str(value) for tag, [(_, value)] in scalars(tmp_path).items()}
        assert values == {"a": "nan", "b": "inf", "c": "-inf", "d": "2.0"}


def histograms(run_dir):
    reader = events(run_dir)
    return {tag: reader.Histograms(tag) for tag in reader.Tags()["histograms"]}


def histogram(run_dir, tensor):
    """What a reader gets of one tensor."""
    with writing(run_dir) as writer:
        writer.histograms(0, {"w": tensor}, NOTHING)
    ((event,),) = histograms(run_dir).values()
    return event.histogram_value


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


RANDOM = torch.randn(500, generator=torch.Generator().manual_seed(0))
ALL, MIDDLE = slice(None), slice(1, 3)
TENSORS = {
    "normal": (RANDOM[:150].view(3, 50), ALL),
    "bfloat16": (RANDOM.bfloat16(), ALL),
    "scalar": (torch.tensor(2.5), ALL),
    "zeros": (torch.zeros(9), ALL),
    "constant": (torch.full((9,), -3.0), ALL),
    "two neighbors": (double(1.0, 1.0 + 2**-52), ALL),
    "subnormal": (double(1e-40, 1e-320, 0.0), ALL),
    "large": (torch.tensor([1e30, -1e38]), ALL),
    "some not finite": (torch.tensor([math.nan, 1.0, -2.0, math.inf, -math.inf]), MIDDLE),
    "some too large to square": (double(1e300, 1.0, 2.0, -1e300), MIDDLE),
}


class TestHistograms:
    @pytest.mark.parametrize("impl", ["manual", "reference", "both"])
    def test_tags_and_counts_of_a_network(self, tmp_path, impl):
        data, config = load("points"), configure(impl=impl, hidden=(5,), dtype="float64")
        learner = learner_of(config, data)
        result = learner.backpropagate(*data.train.batch(torch.arange(7), torch.float64))
        with writing(tmp_path, config=config, data=data) as writer:
            for step in (0, 1000):
                writer.histograms(step, learner.parameters, result)
        read = histograms(tmp_path)
        assert {tag: event.histogram_value.num for tag, (event, _) in read.items()} == {
            **{"weights/layer1": 5 * 2, "weights/layer2": 2 * 5, "biases/layer1": 5, "biases/layer2": 2},
            **{"gradients/layer1.weight": 5 * 2, "gradients/layer2.weight": 2 * 5},
            **{"gradients/layer1.bias": 5, "gradients/layer2.bias": 2},
            **{"deltas/layer1": 7 * 5, "deltas/layer2": 7 * 2, "deltas/output": 7 * 2},
            **{"activations/layer1": 7 * 5, "activations/layer2": 7 * 2},
        }
        assert all([event.step for event in pair] == [0, 1000] for pair in read.values())

    def test_tags_of_parameters_and_none_of_a_tensor_without_finite_values(self, tmp_path):
        tags = {"layer1.weight": "weights/layer1", "blocks.3.norm.bias": "biases/blocks.3.norm"}
        tags |= {name: f"parameters/{name}" for name in ("embedding", "norm.gain", "weight")}
        without = {"empty": [], "nan": [math.nan, math.nan], "infinite": [math.inf]}
        result = replace(NOTHING, gradients={name: torch.tensor(values) for name, values in without.items()})
        with writing(tmp_path) as writer:
            writer.histograms(0, {name: torch.ones(len(name)) for name in tags}, result)
        read = {tag: event.histogram_value.num for tag, (event,) in histograms(tmp_path).items()}
        assert read == {tag: len(name) for name, tag in tags.items()}

    @pytest.mark.parametrize(("tensor", "kept"), TENSORS.values(), ids=TENSORS)
    def test_every_finite_value_is_counted(self, tmp_path, tensor, kept):
        values, found = tensor.double().flatten()[kept], histogram(tmp_path, tensor)
        assert (found.num, found.min, found.max) == (len(values), values.min(), values.max())
        sums = values.sum().item(), values.square().sum().item()
        assert (found.sum, found.sum_squares) == pytest.approx(sums)
        edges = np.array(found.bucket_limit)
        assert (len(edges), sum(found.bucket)) == (65, len(values))
        assert (np.diff(edges) > 0).all()
        assert edges[0] < values.min() <= values.max() < edges[-1]

    def test_buckets_lie_where_the_values_do(self, tmp_path):
        found = histogram(tmp_path, torch.cat([torch.linspace(-1, 0, 1000), torch.linspace(2.5, 3, 200)]))
        right, counts = np.array(found.bucket_limit), np.array(found.bucket)
        assert counts[right <= 0].sum() == pytest.approx(1000, abs=70)  # a bucket may straddle 0
        assert counts[(right > 0.1) & (right < 2.5)].sum() == 0
        assert counts[right >= 2.5].sum() == 200


def after_a_kill(run_dir):
    """Both files as a killed process may leave them: with the last record cut off."""
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "loss/tr')
    path = event_file(run_dir)
    path.write_bytes(path.read_bytes()[:-7])


def within_a_second(run_dir, later=0):
    """Whole files, but the event file's name comes after any other of this second."""
    path = event_file(run_dir).rename(run_dir / f"events.out.tfevents.{int(time.time()) + later:010d}.~")
    os.utime(path, (time.time() + later,) * 2)


def before_the_clock_went_back(run_dir):
    """A file of tomorrow."""
    within_a_second(run_dir, later=86_400)


class TestResume:
    @pytest.mark.parametrize("interrupted", [after_a_kill, within_a_second, before_the_clock_went_back])
    def test_no_step_is_there_twice(self, tmp_path, interrupted):
        """Not as a number, nor as a picture or a histogram."""
        for start, stop in ((0, 7), (4, 9)):
            with writing(tmp_path, start) as writer:
                for step in range(start, stop):
                    writer.pictures(step, {"layer1.weight": torch.randn(3, 20)})
                    writer.histograms(step, {"layer1.weight": torch.randn(3, 20)}, NOTHING)
                    writer.scalars(step, {"loss/train": 100.0 * start + step})
            if start == 0:
                interrupted(tmp_path)
        expected = [*((step, float(step)) for step in range(4)), *((step, 400.0 + step) for step in range(4, 9))]
        assert scalars(tmp_path) == {"loss/train": expected}
        assert [(m["step"], m["loss/train"]) for m in metrics(tmp_path)] == expected
        last = events(tmp_path).Scalars("loss/train")[-1]
        assert (last.wall_time - time.time() > 86_000) == (interrupted is before_the_clock_went_back), (
            "no time goes back"
        )
        assert image_steps(events(tmp_path)) == {"first_layer_weights": list(range(9))}
        assert [event.step for event in events(tmp_path).Histograms("weights/layer1")] == list(range(9))

    def test_one_without_metrics_goes_on_and_a_fresh_run_starts_them_anew(self, tmp_path):
        for start in (5, 0, 0):
            with writing(tmp_path, start) as writer:
                writer.scalars(start, {"loss/train": 1.0})
                assert metrics(tmp_path) == [{"step": start, "loss/train": 1.0}]


def sure(labels, right):
    """Outputs (N, 3), sure of the right class for the first `right` examples, and of another for the rest."""
    said = torch.cat([labels[:right], (labels[right:] + 1) % 3])
    return said, torch.nn.functional.one_hot(said, 3).float()


class TestFinalFigures:
    @pytest.mark.sweep(3)
    @pytest.mark.parametrize(
        ("shape", "right", "more"),
        [((4, 5), 4, ["mistakes"]), ((4, 5), 6, []), ((2,), 4, ["decision_boundary"]), ((7,), 4, [])],
        ids=["pictures", "pictures without a mistake", "points", "features"],
    )
    def test_which_there_are(self, tmp_path, shape, right, more):
        """The confusion matrix is of the largest outputs; the plane is asked about in the network's units, 0 to 1."""
        data, asked = random_pictures(shape), []
        said, outputs = sure(data.test.y, right)
        predict = lambda x: asked.append(x) or torch.stack([x[:, 0], x[:, 1], -x[:, 0]], dim=1)  # noqa: E731
        with writing(tmp_path, data=data) as writer:
            writer.final_figures(40, outputs, data.test.y, predict)
        reader = events(tmp_path)
        assert image_steps(reader) == {name: [40] for name in ("confusion_matrix", *more)}
        [(_, matrix)] = images(reader)["confusion_matrix"]
        assert (matrix == colors_of(figures.confusion_matrix(data.test.y, said, data.classes))).all()
        assert len(asked) == ("decision_boundary" in more)
        assert all(-0.1 < x.min() < 0.2 and 0.8 < x.max() < 1.1 for x in asked)

    @pytest.mark.sweep(3)
    @pytest.mark.parametrize("loss", ["softmax-cross-entropy", "sigmoid-cross-entropy", "quadratic"])
    def test_outputs_of_any_kind(self, tmp_path, loss):
        data = random_pictures()
        outputs = 1e4 * sure(data.test.y, 3)[1].bfloat16()
        outputs[0] = math.nan
        with writing(tmp_path, data=data, config=configure(loss=loss)) as writer:
            writer.final_figures(1, outputs, data.test.y, lambda x: x)
        assert image_steps(events(tmp_path)) == {"confusion_matrix": [1], "mistakes": [1]}


CHOSEN = configure(hidden=(30, 7), activation=("tanh",), lr=0.125)


class TestConfiguration:
    def test_text(self, tmp_path):
        for start in (0, 1):
            with writing(tmp_path, start, CHOSEN):
                pass
        reader = events(tmp_path)
        ((_, text),) = texts(reader, "config")  # once, though the run was resumed
        rows = text.splitlines()
        assert {"| hidden | `[30, 7]` |", "| lr | `0.125` |"} <= set(rows)
        assert len(rows) == 2 + len(fields(CHOSEN))
        ((_, environment),) = texts(reader, "environment")
        assert f'| torch | `"{torch.__version__}"` |' in environment

    def test_a_generated_text_keeps_its_line_ends_and_is_no_markdown(self, tmp_path):
        sample = "\nab\n\n  *c* <i>\n```\n| x | y |\n|---|---|\n&amp; - z"
        with writing(tmp_path) as writer:
            writer.generated(5, sample)
        ((step, text),) = texts(events(tmp_path), "generated")
        assert step == 5
        html = markdown(text, extensions=["tables", "fenced_code"])  # as TensorBoard reads it
        assert unescape(html) == f"<pre><code>{sample}\n</code></pre>"

    def test_hparams_of_the_run_itself_and_of_one_that_had_nothing_left_to_do(self, tmp_path):
        run_dir = tmp_path / "run"
        with writing(run_dir, config=CHOSEN) as writer:
            writer.scalars(60, {"accuracy/test": 0.75})
            writer.hparams({"hparam/accuracy": 0.75})
        values, experiment = hparams_of(run_dir)
        assert (values["hidden"], values["activation"], values["lr"]) == ("30 7", "tanh", 0.125)
        assert [info.name.tag for info in experiment.experiment.metric_infos] == ["hparam/accuracy"]
        assert scalars(run_dir)["hparam/accuracy"] == [(60, 0.75)]
        assert metrics(run_dir)[-1] == {"step": 60, "hparam/accuracy": 0.75}
        assert [path for path in tmp_path.rglob("*") if path.is_dir()] == [run_dir]
        event_file(run_dir)  # the only one
        with writing(tmp_path, start_step=61) as writer:
            writer.hparams({"hparam/accuracy": 0.75})
        assert scalars(tmp_path) == {"hparam/accuracy": [(60, 0.75)]}

    @pytest.mark.parametrize(("options", "more"), HPARAMS.values(), ids=HPARAMS)
    def test_hparams_are_only_what_the_run_has(self, tmp_path, options, more):
        with writing(tmp_path, config=configure(device="cpu", check_every=3, **options)) as writer:
            writer.hparams({"hparam/accuracy": 0.75})
        values, _ = hparams_of(tmp_path)
        every = f"model impl init seed dataset loss optimizer lr epochs batch_size schedule dtype activation {more}"
        assert values.keys() == set(every.split())
        assert {"nesterov": 0.9, "muon": 0.95}.get(options.get("optimizer")) == values.get("momentum")


DIGITS = {"loss/test": 0.44546, "accuracy/test": 0.28451, "accuracy/train": 0.3153}
TEXT = {"loss/test": 1.50009, "bits/test": 2.16417, "bits/train": 2.1}
OF_DIGITS = "loss/test 0.4455  accuracy/test 28.45%  accuracy/train 31.53%"
OF_TEXT = "loss/test 1.5001  bits/test 2.164  bits/train 2.100"
SAID = {
    "an epoch": (CLASSIFICATION, DIGITS, {}, OF_DIGITS),
    "a step": (CLASSIFICATION, DIGITS, {"eval_every": 500}, f"step  1,500/12,000  {OF_DIGITS}"),
    "text": (NEXT_TOKEN, TEXT, {}, OF_TEXT),
}


@pytest.mark.parametrize(("task", "values", "options", "said"), SAID.values(), ids=SAID)
def test_what_is_printed(capsys, task, values, options, said):
    """After an evaluation: the step where the epoch does not say it."""
    train = Streams(torch.arange(50), 7) if task is NEXT_TOKEN else Split(torch.zeros(2, 3), torch.zeros(2).long())
    console = RunConsole(Config(epochs=50, **options), train, task, 12_000)
    console.steps(500)
    console.evaluated(3, 1_500, values)
    assert re.fullmatch(rf"epoch  3/50  {re.escape(said)}  [\d,]+ {train.unit}/s\n", capsys.readouterr().out)
