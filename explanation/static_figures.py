"""Charts as pictures, for TensorBoard: what Plotly draws in the page, drawn by matplotlib."""

from __future__ import annotations

import html
import re
from math import lcm
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from explanation.plotly_layout import WIDTH, Chart, Panel, Trace
from training.dashboard import figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INCH = 90  # pixels of a chart
MARKERS = {"circle": "o", "triangle-up": "^", "triangle-down": "v", "star": "*", "line-ns": "|", "circle-open": "o"}


def static_image(chart: Chart) -> Image.Image:
    """The chart as it looks before anybody clicks."""
    figure = figures.new_figure(WIDTH / INCH, chart.height / INCH)
    columns = lcm(*map(len, chart.rows))
    widths = [panel.width for panel in chart.rows[0]] if len(chart.rows) == 1 else None
    grid = figure.add_gridspec(len(chart.rows), columns, height_ratios=chart.heights, width_ratios=widths)
    for i, row in enumerate(chart.rows):
        span = columns // len(row)
        for j, panel in enumerate(row):
            axes = figure.add_subplot(grid[i, j * span : (j + 1) * span])
            _draw(axes, panel)
            if chart.legend:
                axes.legend(frameon=False, fontsize=7)
    return figures.drawn(figure)


def _draw(axes: Axes, panel: Panel) -> None:
    for trace in panel.traces:
        DRAW[trace["type"]](axes, trace)
    axes.set_title(_plain(panel.title), loc="left", fontsize=9, fontweight="bold", parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    for axis, spec, limits in ((axes.xaxis, panel.xaxis, axes.set_xlim), (axes.yaxis, panel.yaxis, axes.set_ylim)):
        axis.set_label_text(_plain(spec.get("title", {}).get("text", "")), fontsize=8)
        axis.set_tick_params(labelsize=7)
        if spec.get("type") == "log":
            (axes.set_xscale if axis is axes.xaxis else axes.set_yscale)("log")
        if "range" in spec:
            limits(*(10.0**end if spec.get("type") == "log" else end for end in spec["range"]))
        if "tickvals" in spec:
            axis.set_ticks(spec["tickvals"], [_plain(text) for text in spec["ticktext"]], parse_math=False)
        if spec.get("autorange") == "reversed":
            axis.set_inverted(True)
        if not spec.get("visible", True):
            axis.set_visible(False)
    if not panel.xaxis.get("visible", True) and not panel.yaxis.get("visible", True):
        axes.axis("off")
    if panel.yaxis.get("scaleanchor"):
        axes.set_aspect("equal")


def _bar(axes: Axes, trace: Trace) -> None:
    colors = trace["marker"]["color"]
    if trace.get("orientation") == "h":
        axes.barh(trace["y"], trace["x"], color=colors, height=0.75)
    else:
        axes.bar(trace["x"], trace["y"], color=colors, width=0.75)
        axes.tick_params(axis="x", labelrotation=60 if max(map(len, map(str, trace["x"])), default=0) > 3 else 0)
    if "text" in trace:
        for x, y, text in zip(trace["x"], trace["y"], trace["text"], strict=True):
            axes.text(x, y, f" {_plain(text)}", fontsize=7, va="center", ha="left" if x >= 0 else "right")


def _waterfall(axes: Axes, trace: Trace) -> None:
    steps = np.array([0.0 if kind == "total" else y for kind, y in zip(trace["measure"], trace["y"], strict=True)])
    ends = steps.cumsum()
    starts = np.where(np.array(trace["measure"]) == "total", 0.0, ends - steps)
    colors = [
        trace["totals" if kind == "total" else "increasing" if step >= 0 else "decreasing"]["marker"]["color"]
        for kind, step in zip(trace["measure"], steps, strict=True)
    ]
    axes.bar([_plain(x) for x in trace["x"]], ends - starts, bottom=starts, color=colors, width=0.75)
    axes.axhline(0, color="#888888", linewidth=0.6)
    axes.tick_params(axis="x", labelrotation=60)


def _heatmap(axes: Axes, trace: Trace) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    z = np.array([[np.nan if value is None else value for value in row] for row in trace["z"]], dtype=float)
    rows, columns = z.shape
    x0, dx, y0, dy = (trace.get(key, default) for key, default in (("x0", 0), ("dx", 1), ("y0", 0), ("dy", 1)))
    extent = (x0 - dx / 2, x0 + (columns - 0.5) * dx, y0 - dy / 2, y0 + (rows - 0.5) * dy)
    colors = LinearSegmentedColormap.from_list("chart", trace["colorscale"])
    axes.imshow(z, colors, aspect="auto", origin="lower", extent=extent, vmin=trace["zmin"], vmax=trace["zmax"])
    for (row, column), text in np.ndenumerate(np.array(trace.get("text", []), dtype=object)):
        axes.text(x0 + column * dx, y0 + row * dy, _plain(text), ha="center", va="center", fontsize=6)


def _scatter(axes: Axes, trace: Trace) -> None:
    x = [np.nan if value is None else value for value in trace["x"]]
    y = [np.nan if value is None else value for value in trace["y"]]
    if trace.get("opacity") == 0:
        return
    if "lines" in trace["mode"]:
        line = trace["line"]
        dash = "--" if "dash" in line else "-"
        axes.plot(x, y, dash, color=_color(line["color"]), linewidth=line.get("width", 1.5), label=trace.get("name"))
    if "markers" in trace["mode"]:
        _markers(axes, trace, x, y)
    if "text" in trace["mode"]:
        colors = trace.get("textfont", {}).get("color", "#222222")
        colors = [colors] * len(x) if isinstance(colors, str) else colors
        side = "left" if "right" in trace.get("textposition", "") else "center"
        for left, bottom, text, color in zip(x, y, trace["text"], colors, strict=True):
            axes.text(left, bottom, _plain(text), color=color, fontsize=6, ha=side, va="center", zorder=4)


def _markers(axes: Axes, trace: Trace, x: list[float], y: list[float]) -> None:
    """One call for each marker, because matplotlib takes one shape a call."""
    marker = trace["marker"]
    symbols, sizes, colors = (_each(marker.get(key), len(x)) for key in ("symbol", "size", "color"))
    edges, widths = (_each(marker.get("line", {}).get(key), len(x)) for key in ("color", "width"))
    for i, symbol in enumerate(symbols):
        color, edge = _color(colors[i]), _color(edges[i] or colors[i])
        how: dict[str, Any] = {"facecolor": color, "edgecolor": edge, "linewidth": widths[i] or 0}
        if symbol == "line-ns":
            how = {"color": color}
        elif symbol == "circle-open":
            how = {"facecolor": "none", "edgecolor": edge, "linewidth": 1.2}
        axes.scatter(x[i : i + 1], y[i : i + 1], s=(sizes[i] * 72 / INCH) ** 2, marker=MARKERS[symbol], zorder=3, **how)


DRAW = {"bar": _bar, "heatmap": _heatmap, "scatter": _scatter, "waterfall": _waterfall}


def _each(value: Any, n: int) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value] * n


def _color(color: str) -> Any:
    """Plotly's rgba(r,g,b,a), with 0 to 255 and 0 to 1, as matplotlib has it; other colors as they are."""
    found = re.fullmatch(r"rgba\((\d+),(\d+),(\d+),([\d.]+)\)", color)
    return (*(int(part) / 255 for part in found.groups()[:3]), float(found[4])) if found else color


def _plain(text: str) -> str:
    return html.unescape(re.sub(r"<br>", "\n", str(text)).replace("<b>", "").replace("</b>", ""))
