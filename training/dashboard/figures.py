"""Figures of what a network learned. matplotlib is imported where it is needed, because it takes long to load."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from training.dashboard.metrics import read_metrics
from training.tasks import CLASSIFICATION, Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

# Okabe and Ito's colors, which readers with any color vision can tell apart.
VERMILION, BLUE, GREEN = "#D55E00", "#0072B2", "#009E73"
COLORS = (VERMILION, BLUE, GREEN, "#E69F00", "#CC79A7", "#56B4E9", "#F0E442", "#000000")


def confusion_matrix(labels: Tensor, predictions: Tensor, classes: Sequence[str]) -> Image.Image:
    """How often each label (a row) got each prediction (a column). Both (N,) int64."""
    n = len(classes)
    counts = torch.bincount(labels * n + predictions, minlength=n * n).view(n, n)
    share = counts / counts.sum(1, keepdim=True).clamp(min=1)
    side = min(3.2 + 0.3 * n, 16)
    figure = new_figure(side + 0.6, side)
    axes = figure.add_subplot()
    axes.imshow(share.sqrt().numpy(), cmap="Blues", vmin=0, vmax=1)  # the root, so that rare mistakes show
    if n <= 20:
        for (row, column), count in np.ndenumerate(counts.numpy()):
            color = "white" if share[row, column] > 0.36 else "black" if count else "#bbbbbb"
            axes.text(column, row, f"{count}", ha="center", va="center", color=color, fontsize=9)
    correct = (labels == predictions).double().mean()
    axes.set_title(f"{correct:.2%} of {len(labels):,} classified correctly")
    axes.set_xlabel("prediction")
    axes.set_ylabel("label")
    every = range(0, n, max(1, n // 40))
    names = [short(classes[i]) for i in every]
    crowded = max(map(len, names)) * len(names) > 70
    axes.set_xticks(every, names, rotation=90 if crowded else 0, parse_math=False)
    axes.set_yticks(every, names, parse_math=False)
    return drawn(figure)


def mistakes(
    x: Tensor,
    labels: Tensor,
    confidence: Tensor,
    shape: tuple[int, ...],
    classes: Sequence[str],
    unit: str,
    rows: int = 4,
    columns: int = 8,
) -> Image.Image | None:
    """The examples that the network is most sure of and wrong about; None if it makes no mistake.

    x (N, height·width) bytes or floating point, labels (N,), confidence (N, classes), whose largest entry is the
    prediction; `unit` says what confidence is.
    """
    sure, predictions = confidence.max(1)
    wrong = (predictions != labels).nonzero().flatten()
    if len(wrong) == 0:
        return None
    shown = wrong[sure[wrong].argsort(descending=True)][: rows * columns]
    rows, columns = -(-len(shown) // columns), min(len(shown), columns)
    height, width = shape
    shorts = [short(name) for name in classes]
    arrow = " → " if max(map(len, shorts)) < 6 else "\n→ "
    margin, caption = 0.12 * width, (0.45 if arrow == " → " else 0.6) * height  # around the pictures, in their pixels
    figure = new_figure(max(4, 1.25 * columns + 0.3), 1.25 * rows * (height + caption) / (width + margin) + 0.6)
    axes = figure.add_subplot()
    axes.axis("off")
    for k, i in enumerate(shown.tolist()):
        left, top = k % columns * (width + margin), k // columns * (height + caption)
        picture = x[i].float().cpu().view(shape).numpy()
        axes.imshow(picture, cmap="gray", extent=(left, left + width, top + height, top))
        text = f"{shorts[int(labels[i])]}{arrow}{shorts[int(predictions[i])]}\n{sure[i]:.3f}"
        axes.text(left + width / 2, top + height * 1.05, text, ha="center", va="top", fontsize=9, parse_math=False)
    axes.set_xlim(-margin, columns * (width + margin))
    axes.set_ylim(rows * (height + caption), -margin)
    axes.set_title(f"{len(shown)} of {len(wrong):,} mistakes: label → prediction, {unit}")
    return drawn(figure)


def decision_boundary(
    x: Tensor, labels: Tensor, predict: Callable[[Tensor], Tensor], classes: Sequence[str], resolution: int = 300
) -> Image.Image:
    """What the network says everywhere in the plane (pale), and examples x (N, 2) with their labels (N,).

    `predict` maps inputs (M, 2) of x's dtype and device to outputs (M, classes).
    """
    from matplotlib.colors import to_rgb

    low, high = x.amin(0), x.amax(0)
    margin = torch.where(high > low, 0.05 * (high - low), 1.0)
    (left, bottom), (right, top) = (low - margin).tolist(), (high + margin).tolist()
    horizontal = torch.linspace(left, right, resolution, dtype=x.dtype)
    vertical = torch.linspace(bottom, top, resolution, dtype=x.dtype)
    grid = torch.cartesian_prod(vertical, horizontal).flip(1)
    predictions = predict(grid.to(x.device)).argmax(1).view(resolution, resolution).cpu()
    colors = np.array([to_rgb(color) for color, _ in zip(cycle(COLORS), classes, strict=False)])
    figure = new_figure(7, 6.4)
    axes = figure.add_subplot()
    area = 1 - 0.35 * (1 - colors[predictions])
    axes.imshow(area, extent=(left, right, bottom, top), origin="lower", aspect="auto")
    points = x.cpu().numpy()
    for index, name in enumerate(classes):
        own = points[labels.numpy() == index][:400]
        axes.scatter(own[:, 0], own[:, 1], s=14, color=colors[index], edgecolors="white", linewidths=0.5, label=name)
    axes.set_xlabel("x₁")
    axes.set_ylabel("x₂")
    axes.set_title("prediction (area) and label (points)")
    if len(classes) <= 20:
        legend(axes, loc="upper left", bbox_to_anchor=(1, 1))
    return drawn(figure)


def gradient_by_depth(deltas: Mapping[str, float], weights: Mapping[str, float]) -> Image.Image:
    """The sizes of δ and of ∂C/∂W by layer, from the first to the last, on a logarithmic scale.

    `weights` has some of the layers of `deltas`. A size that has no place on the scale (0, NaN, ∞) is left out.
    """
    layers = list(deltas)
    figure = new_figure(max(5.0, 1.2 + 0.28 * len(layers)), 4.4)
    axes = figure.add_subplot()
    for label, sizes, color in (("δ", deltas, BLUE), ("∂C/∂W", weights, VERMILION)):
        places = [layers.index(name) for name in sizes]
        heights = [size if 0 < size < np.inf else np.nan for size in sizes.values()]
        axes.plot(places, heights, "o-", color=color, label=label, markersize=4)
    axes.set_yscale("log")
    axes.set_title("size of the gradients, from the first layer to the last")
    axes.set_ylabel("root mean square")
    axes.set_xticks(range(len(layers)), layers, rotation=90, parse_math=False)
    axes.grid(axis="y", alpha=0.3)
    legend(axes)
    return drawn(figure)


def curves(runs: Mapping[str, Path], destination: Path | BinaryIO, task: Task = CLASSIFICATION) -> None:
    """A PNG at `destination`: the task's metrics against the step, for each label's metrics.jsonl.

    Of several runs the first is wide and pale, the others thin and dashed on top of it, so that equal curves both show.
    """
    figure = new_figure(11, 4.4)
    thin = cycle((0, pattern) for pattern in ((3, 2), (1, 1.5), (6, 2, 1, 2)))
    styles: list[dict[str, Any]] = [{"linewidth": 1.6}]
    if len(runs) > 1:
        styles = [{"linewidth": 6, "alpha": 0.35, "solid_capstyle": "butt"}]
        styles += [{"linewidth": 1.3, "linestyle": next(thin)} for _ in range(len(runs) - 1)]
    metrics = [list(read_metrics(path)) for path in runs.values()]
    for column, metric in enumerate(task.metrics, 1):
        axes = figure.add_subplot(1, len(task.metrics), column)
        drawn, learned = [], []
        for label, records, style in zip(runs, metrics, styles, strict=True):
            for split, color in (("train", BLUE), ("test", VERMILION)):
                tag = f"{metric.name}/{split}"
                points = [(record["step"], record[tag]) for record in records if record.get(tag) is not None]
                steps, values = [step for step, _ in points], [value for _, value in points]
                marker = "o" if len(points) < 3 else None
                axes.plot(steps, values, color=color, marker=marker, label=f"{label}, {split}", **style)
                drawn += values
                learned += [value for step, value in points if step > 0]
        if metric.scale == "share" and learned:  # the first guess, before any step, would squeeze all the others
            axes.set_ylim(max(0.0, min(learned) - 0.05), max(learned) + 0.02)
        _decorate(axes, metric.name, metric.unit, log=metric.scale == "logarithmic" and bool(drawn) and min(drawn) > 0)
    figure.savefig(destination, format="png")


def _decorate(axes: Axes, title: str, unit: str, log: bool) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

    axes.set_title(title)
    axes.set_xlabel("step")
    axes.set_ylabel(unit)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.25)
    legend(axes)


def signed_colors() -> Colormap:
    """Vermilion below zero, white, blue above."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("signed", (VERMILION, "white", BLUE))


def legend(axes: Axes, **where: Any) -> None:
    for text in axes.legend(frameon=False, **where).get_texts():
        text.set_parse_math(False)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this many inches, laid out so that nothing is clipped."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def drawn(figure: Figure) -> Image.Image:
    """The drawn figure. A letter that the font lacks is drawn as a box, without a warning."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def short(name: str, length: int = 12) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"
