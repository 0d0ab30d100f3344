"""What a run leaves behind to look at: TensorBoard's event file, and the same numbers exactly in metrics.jsonl.

docs/metrics.md explains every tag.
"""

import io
import json
import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor
from torch.utils.tensorboard.summary import histogram_raw, hparams, text

from training.config import Config
from training.dashboard.by_step import LAYERS, Inside, gates_by_step, gradient_by_step
from training.dashboard.events import EventFile
from training.dashboard.metrics import METRICS, MetricsFile
from training.dashboard.weight_images import feature_maps, filter_pictures, weight_pictures
from training.data import Dataset
from training.data.text import visible
from training.evaluation import confidence
from training.learners.base import Backpropagation, activations, without_activations
from training.tasks import task_of

BINS = 64


class MetricsWriter:
    """Writes a run's metrics into `run_dir`; a step is the number of parameter updates made so far.

    `start_step` is 0 for a fresh run. A run that goes on after s steps, whose values are written already, gives s + 1,
    and whatever an earlier process wrote from there on is dropped. `environment` (versions, device, …) is kept as text.
    """

    def __init__(
        self, run_dir: Path, config: Config, data: Dataset, *, start_step: int = 0, environment: Mapping[str, Any]
    ) -> None:
        self.config, self.data, self.task = config, data, task_of(data)
        self.step = max(start_step - 1, 0)  # of the newest scalars
        with ExitStack() as opened:
            self.events = opened.enter_context(closing(EventFile(run_dir, start_step)))
            self.jsonl = opened.enter_context(closing(MetricsFile(run_dir / METRICS, start_step)))
            if start_step == 0:
                self.events.add(text("config", _markdown_table("field", asdict(config))), 0)
                self.events.add(text("environment", _markdown_table("what", environment)), 0)
            self.opened = opened.pop_all()  # closes both, whatever either says

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One event and one line of metrics.jsonl with these values; there, NaN and ±∞ are null."""
        self.step = step
        numbers = {tag: float(value) for tag, value in values.items()}
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in numbers.items()])
        self.events.add(summary, step)  # one event for all: a quarter of the time of one for each
        self.jsonl.write(step, numbers)

    def histograms(
        self,
        step: int,
        parameters: Mapping[str, Tensor],
        result: Backpropagation,
        buffers: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Parameters, batch norm's running statistics, and the gradients, δs and activations of one mini-batch."""
        tensors = {_parameter_tag(name): tensor for name, tensor in parameters.items()}
        for name, tensor in (buffers or {}).items():
            if name.endswith((".running_mean", ".running_var")):
                tensors[f"batch_norm/{name}"] = tensor
        for folder, named in {
            "gradients": result.gradients,
            "deltas": without_activations(result.deltas),
            "activations": activations(result.outputs),
        }.items():
            tensors |= {f"{folder}/{name}": tensor for name, tensor in named.items()}
        for tag, tensor in tensors.items():
            self._histogram(tag, tensor, step)

    def pictures(self, step: int, parameters: Mapping[str, Tensor]) -> None:
        """The first convolution's kernels, or else the first layer's weights where the examples are pictures."""
        for weights in parameters.values():
            if weights.ndim == 4:
                self._image("filters", filter_pictures(weights), step)
                return
        if len(self.data.shape) != 2:
            return
        features = math.prod(self.data.shape)
        for weights in parameters.values():
            if weights.ndim == 2 and weights.shape[1] == features:
                self._image("first_layer_weights", weight_pictures(weights, self.data.shape), step)
                return

    def feature_maps(self, step: int, activations: Mapping[str, Tensor]) -> None:
        """What each layer makes of the first test example: of its activations, those of shape (1, C, H, W)."""
        maps = {name: a[0] for name, a in activations.items() if a.ndim == 4 and a.numel()}
        if maps and len(self.data.shape) in (2, 3):
            test = self.data.test
            picture = test.stored(torch.arange(1, device=test.device)).view(-1, *self.data.shape[-2:])
            self._image("feature_maps", feature_maps(picture, maps), step)

    def generated(self, step: int, sample: str) -> None:
        """A text as it is: indented, Markdown keeps its line ends and every symbol."""
        self.events.add(text("generated", "\n".join(f"    {line}" for line in sample.split("\n"))), step)

    def gradient_by_depth(self, step: int, result: Backpropagation) -> None:
        """The sizes of δ and of the gradients of matrices and kernels, from the first layer to the last."""
        from training.dashboard import figures

        deltas = {name: rms(result.deltas[name]) for name in without_activations(result.outputs)}
        kernels = {name: result.gradients.get(f"{name}.weight") for name in deltas}
        weights = {name: rms(g) for name, g in kernels.items() if g is not None and g.ndim > 1}
        self._image("gradient_by_depth", figures.gradient_by_depth(deltas, weights), step)

    def by_step(self, step: int, found: Inside) -> None:
        """What `inside` found: sizes of ∂C/∂h_t, and the gates of each recurrent layer."""
        steps = list(map(str, range(found.steps)))
        if not found.x.is_floating_point():
            steps = [visible(self.data.classes[i]) for i in found.x.tolist()]
        pictures = {"gradient": gradient_by_step(found.gradients, steps)}
        pictures |= {name: gates_by_step(name, gates, steps) for name, gates in list(found.gates.items())[:LAYERS]}
        for name, picture in pictures.items():
            self.events.add(image_summary(f"by_step/{name}", picture), step)

    def final_figures(self, step: int, outputs: Tensor, labels: Tensor, predict: Callable[[Tensor], Tensor]) -> None:
        """The task's: confusion matrix, most confident mistakes and, for points in the plane, the decision boundary.

        `outputs` (N, classes) are the model's on the test set, whose classes are `labels` (N,); `predict` maps inputs
        (M, 2), float32, to outputs.
        """
        from training.dashboard import figures  # imports matplotlib, which takes longer than many a run's first epoch

        test, shape, classes = self.data.test, self.data.shape, self.data.classes
        everything = torch.arange(len(test), device=test.device)
        outputs, labels = outputs.cpu(), labels.cpu()
        if "confusion_matrix" in self.task.figures:
            self._image("confusion_matrix", figures.confusion_matrix(labels, outputs.argmax(1), classes), step)
        if "mistakes" in self.task.figures and len(shape) == 2:
            values, unit = confidence(outputs, self.config.loss)
            picture = figures.mistakes(test.stored(everything), labels, values, shape, classes, unit)
            if picture is not None:
                self._image("mistakes", picture, step)
        if "decision_boundary" in self.task.figures and shape == (2,):
            x, _ = test.batch(everything, torch.float32)
            self._image("decision_boundary", figures.decision_boundary(x, labels, predict, classes), step)

    def hparams(self, metrics: Mapping[str, float]) -> None:
        """The configuration as a row of TensorBoard's HPARAMS table, with `metrics` (hparam/accuracy, …) as columns."""
        for summary in hparams(_hyperparameters(self.config), dict(metrics)):
            self.events.add(summary, 0)
        self.scalars(self.step, metrics)

    def flush(self) -> None:
        self.events.flush()
        self.jsonl.flush()

    def close(self) -> None:
        self.opened.close()

    def _image(self, name: str, picture: Image.Image, step: int) -> None:
        self.events.add(image_summary(f"images/{name}", picture), step)

    def _histogram(self, tag: str, tensor: Tensor, step: int) -> None:
        """Leaves out values that are not finite, or beyond ±10¹⁵⁰, and a tensor that has no others."""
        values = tensor.detach().flatten().cpu().double()
        values = values[values.abs() < 1e150]
        if len(values) == 0:
            return
        low, high = values.min().item(), values.max().item()
        margin = 1e-6 * max(-low, high) or 1e-12  # bins of a span much narrower would not differ in float64
        counts = torch.histc(values, BINS, low - margin, high + margin)
        histogram = histogram_raw(
            tag,
            min=low,
            max=high,
            num=len(values),
            sum=values.sum().item(),
            sum_squares=values.square().sum().item(),
            bucket_limits=torch.linspace(low - margin, high + margin, BINS + 1, dtype=torch.float64).tolist(),
            bucket_counts=[0, *counts.tolist()],  # nothing lies below the first limit
        )
        self.events.add(histogram, step)


def write_images(run_dir: Path, pictures: Mapping[str, Image.Image], step: int) -> None:
    """Pictures by tag, in an event file of their own beside those that the run has."""
    with closing(EventFile(run_dir)) as events:
        for tag, picture in pictures.items():
            events.add(image_summary(tag, picture), step)


def image_summary(tag: str, picture: Image.Image) -> Summary:
    """What add_image writes, in a fraction of its time: it writes no palettes and compresses harder."""
    png = io.BytesIO()
    picture.save(png, "PNG", compress_level=1)
    width, height = picture.size
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png.getvalue())
    return Summary(value=[Summary.Value(tag=tag, image=image)])


def rms(tensor: Tensor) -> float:
    """Root mean square of the elements: a norm that does not grow with their number."""
    return tensor.cpu().double().square().mean().sqrt().item()


def _parameter_tag(name: str) -> str:
    """weights/layer1 for layer1.weight, biases/layer1 for layer1.bias, parameters/… for any other name."""
    layer, _, kind = name.rpartition(".")
    folder = {"weight": "weights", "bias": "biases"}.get(kind)
    return f"{folder}/{layer}" if layer and folder else f"parameters/{name}"


def _hyperparameters(config: Config) -> dict[str, Any]:
    """What decides what is learned, as HPARAMS takes it: no lists."""
    return {
        name: " ".join(map(str, value)) if isinstance(value, tuple) else value
        for name, value in config.decisive.items()
    }


def _markdown_table(heading: str, values: Mapping[str, Any]) -> str:
    rows = (f"| {name} | `{json.dumps(value, default=str, ensure_ascii=False)}` |" for name, value in values.items())
    return "\n".join((f"| {heading} | value |", "|---|---|", *rows))
