"""The figure of the network that explained an example, and what of it is selected.

A neuron is "2.7": layer 2, index 7, as in layer2.weight[7, …]; layer 0 is the input. A weight is "2:7:3".
"""

import html
from collections.abc import Sequence
from math import ceil

import torch
from torch import Tensor

from explanation.numbers import Explanation, Layer
from explanation.plotly_layout import NARROW, TOP, WIDTH, Chart, Panel, Trace
from explanation.plotly_traces import INK, RING, colors, number, picture, rgba
from training.dashboard.figures import BLUE, VERMILION, short
from training.evaluation import confidence

NEURONS, NEURONS_IN_ALL = 32, 128  # of a layer and of all that are shown at most
NETWORK_HEIGHT = 540  # pixels
LABEL, MARGIN = 21, 20  # pixels from a neuron to its name, and beside the figure
TARGET = " ← target"
LEVELS = 5  # of a weight's width and color


class Names:
    """What neurons and classes are called in figures; a class's own name is escaped."""

    def __init__(self, e: Explanation) -> None:
        self.classes = [html.escape(short(name)) for name in e.trained.data.classes]
        self.shape, self.last = e.trained.data.shape, len(e.layers)

    def brief(self, layer: int, k: int) -> str:
        if layer == self.last:
            return self.classes[k]
        if layer == 0 and len(self.shape) == 2:
            return f"({k // self.shape[1]}, {k % self.shape[1]})"
        return f"x[{k}]" if layer == 0 else str(k)

    def full(self, layer: int, k: int) -> str:
        if layer == self.last:
            return f"output {self.classes[k]}"
        if layer == 0:
            return f"pixel {self.brief(0, k)}" if len(self.shape) == 2 else f"input {self.brief(0, k)}"
        return f"neuron {k} of layer {layer}"


def shown(e: Explanation, layer: int) -> list[int]:
    """The neurons of a layer that the page shows: those with the largest |δ| where there are many."""
    if layer == 0:
        return list(range(len(e.x))) if len(e.x) <= NEURONS else []
    delta = e.layers[layer - 1].delta.abs().clone()
    if layer == len(e.layers):
        delta[e.label] = torch.inf
    return sorted(delta.argsort(descending=True, stable=True)[: most_shown(e)].tolist())


def most_shown(e: Explanation) -> int:
    """How many neurons of a layer are shown at most."""
    return max(4, min(NEURONS, NEURONS_IN_ALL // len(e.layers)))


def network(e: Explanation) -> Chart:
    """Neurons as bright as they are active, weights by color and width, and an arrow for every activation's wish.

    Three of the traces are empty, with a `meta` of "mark": the lines to and from the neuron that is selected, of
    positive and of negative weights, and its ring.
    """
    names = Names(e)
    traces: list[Trace] = []
    if len(names.shape) == 2 and not shown(e, 0):
        height, width = names.shape
        across = 0.72  # of the distance between layers
        downs = [across / _unit(e, pixels) / NETWORK_HEIGHT * height / width for pixels in (WIDTH, NARROW)]
        wide, narrow = ({"y0": 0.5 + down / 2, "dy": -down / height} for down in downs)
        traces.append(picture(e.x, names.shape) | {"x0": -0.8, "dx": across / width, "narrow": narrow} | wide)
    traces += [trace for layer in e.layers for trace in _edges(e, layer)]
    traces += _marks()
    for l in range(len(e.layers) + 1):
        traces += _neurons(e, l, names)
    title = "neurons: bright is active  ·  weights: blue positive, vermilion negative  ·  arrows: wishes"
    captions = ["input", *(f"layer {l}" for l in range(1, len(e.layers))), "output"]
    where = [0.0 if shown(e, 0) else -0.44, *map(float, range(1, len(e.layers) + 1))]
    text: Trace = {"type": "scatter", "mode": "text", "x": where, "y": [-0.06] * len(where), "text": captions}
    traces.append(text | {"hoverinfo": "skip"})
    vertical = {"visible": False, "range": [-0.08, 1.04]}
    across_, narrow_ = list(_across(e, WIDTH)), list(_across(e, NARROW))
    horizontal = {"visible": False, "range": across_, "narrow": {"range": narrow_}}
    panel = Panel(title, traces, horizontal, vertical)
    return Chart([[panel]], height=NETWORK_HEIGHT + TOP + 8, left=0, bottom=8)


def positions(e: Explanation) -> dict[str, tuple[float, float]]:
    """Where each shown neuron stands: the layer's number across, the first on top."""
    result = {}
    for l in range(len(e.layers) + 1):
        rows = shown(e, l)
        pitch = min(0.1, 1 / max(1, len(rows) - 1))
        for i, j in enumerate(rows):
            result[f"{l}.{j}"] = (float(l), 0.5 + pitch * ((len(rows) - 1) / 2 - i))
    return result


def highlight(e: Explanation, l: int, j: int) -> list[dict[str, list[float | None]]]:
    """The lines to and from a neuron: those of positive, and of negative weights."""
    places = positions(e)
    lines: list[dict[str, list[float | None]]] = [{"x": [], "y": []}, {"x": [], "y": []}]
    for layer in e.layers[l - 1 : l + 1]:
        pairs = [(j, k) for k in shown(e, l - 1)] if layer.number == l else [(i, j) for i in shown(e, l + 1)]
        for i, k in pairs:
            (x0, y0), (x1, y1) = places[f"{layer.number - 1}.{k}"], places[f"{layer.number}.{i}"]
            line = lines[0 if layer.W[i, k] > 0 else 1]
            line["x"] += [x0, x1, None]
            line["y"] += [y0, y1, None]
    return lines


def weights(e: Explanation) -> dict[str, list[float]]:
    """Of every weight that is drawn, "layer:j:k": w, a_k, δ_j, ∂C/∂w; its terms of z_j and ∂C/∂a_k; z_j and ∂C/∂a_k."""
    found = {}
    for layer in e.layers:
        da_before = (e.dx if layer.number == 1 else e.layers[layer.number - 2].da).tolist()
        W, a, delta, dW, z = (v.tolist() for v in (layer.W, layer.a_before, layer.delta, layer.dW, layer.z))
        for j in shown(e, layer.number):
            for k in shown(e, layer.number - 1):
                terms = [W[j][k] * a[k], delta[j] * W[j][k], z[j], da_before[k]]
                found[f"{layer.number}:{j}:{k}"] = [W[j][k], a[k], delta[j], dW[j][k], *terms]
    return found


def _edges(e: Explanation, layer: Layer) -> list[Trace]:
    """Lines in a few widths, and on each a few points that can be hovered and clicked."""
    before, after = shown(e, layer.number - 1), shown(e, layer.number)
    if not before:
        return []
    places = positions(e)
    full = max(layer.W[after][:, before].abs().max().item(), 1e-30)
    bins: dict[tuple[int, bool], tuple[list[float | None], list[float | None]]] = {}
    x, y, keys, hover = [], [], [], []
    for j in after:
        for k in before:
            (x0, y0), (x1, y1) = places[f"{layer.number - 1}.{k}"], places[f"{layer.number}.{j}"]
            w = layer.W[j, k].item()
            xs, ys = bins.setdefault((min(LEVELS, ceil(LEVELS * abs(w) / full)), w > 0), ([], []))
            xs += [x0, x1, None]
            ys += [y0, y1, None]
            for share in (0.2, 0.4, 0.6, 0.8):
                x.append(round(x0 + share * (x1 - x0), 4))
                y.append(round(y0 + share * (y1 - y0), 4))
                keys.append(f"{layer.number}:{j}:{k}")
                hover.append(f"layer{layer.number}.weight[{j}, {k}] = {number(w)}")
    traces: list[Trace] = []
    for (level, positive), (xs, ys) in sorted(bins.items()):
        color = rgba(BLUE if positive else VERMILION, 0.08 + 0.5 * level / LEVELS)
        line = {"color": color, "width": 0.4 + 1.6 * level / LEVELS}
        traces.append({"type": "scatter", "mode": "lines", "x": xs, "y": ys, "line": line, "hoverinfo": "skip"})
    points: Trace = {"type": "scatter", "mode": "markers", "x": x, "y": y, "opacity": 0, "customdata": keys}
    points |= {"marker": {"size": 7, "color": INK}, "hovertext": hover, "hoverinfo": "text"}
    return [*traces, points]


def _neurons(e: Explanation, l: int, names: Names) -> list[Trace]:
    rows, places = shown(e, l), positions(e)
    if not rows:
        return []
    if l == len(e.layers):
        a = confidence(e.output.unsqueeze(0), e.trained.config.loss)[0][0][rows]
    else:
        a = (e.x if l == 0 else e.layers[l - 1].a)[rows]
    wish = (-e.dx if l == 0 else -e.layers[l - 1].da)[rows]
    bright = _brightness(a).tolist()
    x, y = [places[f"{l}.{j}"][0] for j in rows], [places[f"{l}.{j}"][1] for j in rows]
    size = _size(rows)
    hover = [f"<b>{names.full(l, j)}</b><br>a = {number(v)}" for j, v in zip(rows, a.tolist(), strict=True)]
    hover = [f"{text}<br>wish −∂C/∂a = {number(v, True)}" for text, v in zip(hover, wish.tolist(), strict=True)]
    fill = [f"rgba({s},{s},{s},1.0)" for s in (round(255 * b) for b in bright)]
    circles: Trace = {"type": "scatter", "mode": "markers", "x": x, "y": y, "hovertext": hover, "hoverinfo": "text"}
    circles["marker"] = {"size": size, "color": fill, "symbol": "circle", "line": {"color": INK, "width": 1.2}}
    circles |= {"customdata": [f"{l}.{j}" for j in rows], "meta": "neurons"}
    traces = [circles]
    if len(rows) <= 20:
        inside = {"color": ["#000000" if b > 0.5 else "#ffffff" for b in bright], "size": 10}
        text = [f"{v:.2f}".replace("-0.", "−.").replace("-", "−") if abs(v) < 10 else f"{v:.0f}" for v in a.tolist()]
        traces.append({"type": "scatter", "mode": "text", "x": x, "y": y, "text": text, "hoverinfo": "skip"})
        traces[-1]["textfont"] = inside
    if l:  # nobody can move the input
        strength = (wish.abs() / wish.abs().max().clamp(min=1e-300)).sqrt().tolist()
        arrows: Trace = {"type": "scatter", "mode": "markers", "y": y, "hoverinfo": "skip"}
        arrows |= _beside(e, x, 0.5 * size + 9)
        arrows["marker"] = {
            "symbol": ["triangle-up" if v > 0 else "triangle-down" for v in wish.tolist()],
            "size": [max(1.0, s * min(15.0, 1.1 * size)) for s in strength],
            "color": colors(wish.tolist()),
        }
        traces.append(arrows)
    if l == len(e.layers):
        text = [f"<b>{names.brief(l, j)}</b>" + TARGET * (j == e.label) for j in rows]
        labels: Trace = {"type": "scatter", "mode": "text", "y": y, "text": text} | _beside(e, x, 0.5 * size + LABEL)
        traces.append(labels | {"textposition": "middle right", "hoverinfo": "skip"})
    return traces


def _brightness(a: Tensor) -> Tensor:
    """From 0 to 1: activations that lie there are their own; others in proportion to the brightest."""
    return a.clamp(min=0) / a.max().clamp(min=1.0)


def _marks() -> list[Trace]:
    marks: list[Trace] = [{"mode": "lines", "line": {"color": color, "width": 2}} for color in (BLUE, VERMILION)]
    marks.append({"mode": "markers", "marker": {"symbol": "circle", "size": 44, "color": RING}})
    return [mark | {"type": "scatter", "x": [None], "y": [None], "hoverinfo": "skip", "meta": "mark"} for mark in marks]


def _size(rows: Sequence[int]) -> float:
    """Of a neuron of a layer with so many, in pixels."""
    return min(34.0, 430 / len(rows))


def _beside(e: Explanation, x: list[float], pixels: float) -> Trace:
    """`x`, so many pixels further right on a page of WIDTH; `meta` tells a narrower page."""
    return {"x": [v + pixels * _unit(e, WIDTH) for v in x], "meta": {"shift": pixels}}


def _across(e: Explanation, width: int) -> tuple[float, float]:
    """From where to where the horizontal axis of a figure of so many pixels goes, in layers, with room for labels."""
    before, picture_ = (30, 0.0) if shown(e, 0) else (0, 0.9)  # pixels for the first neurons, layers for the picture
    letters = max(len(html.unescape(name)) + len(TARGET) * (j == e.label) for j, name in enumerate(Names(e).classes))
    room = 0.5 * _size(shown(e, len(e.layers))) + LABEL + 7.5 * letters
    unit = (len(e.layers) + picture_) / (width - MARGIN - before - room)
    return -picture_ - before * unit, len(e.layers) + room * unit


def _unit(e: Explanation, width: int) -> float:
    """One pixel on that axis."""
    left, right = _across(e, width)
    return (right - left) / (width - MARGIN)
