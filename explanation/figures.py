"""The figures of an explanation: what 3Blue1Brown's chapters 3 and 4 draw, with this network's numbers."""

import html
from collections.abc import Callable
from itertools import cycle
from math import floor, log10

import torch
from torch import Tensor

from explanation.beginning import Moment, moment
from explanation.network_figure import Names, shown
from explanation.numbers import Explanation, Steps
from explanation.plotly_layout import Chart, Panel, Trace
from explanation.plotly_traces import (
    INK,
    PALE,
    RING,
    bare,
    cells,
    colors,
    columns_of,
    in_units,
    number,
    picture,
    room_above,
    waterfall,
    wide,
    words,
)
from training.dashboard.figures import COLORS
from training.evaluation import confidence

GRID = "#e4e4e4"
LAYERS = COLORS[2:6]  # not blue and vermilion, which are up and down
TERMS = 12  # of a sum that are shown one by one
COLUMNS = 11  # of a mini-batch's examples in the table


def outputs(e: Explanation) -> Chart:
    """The picture, every output with its target, its wish, and its part of the cost."""
    names = Names(e)
    rows = shown(e, len(e.layers))
    labels = [names.classes[j] for j in rows]
    values, kind = confidence(e.output.unsqueeze(0), e.trained.config.loss)
    value, wish, cost = (v[rows].tolist() for v in (values[0], -e.layers[-1].da, e.cost_terms))
    places = list(range(len(rows)))
    classes = {"tickvals": places, "ticktext": labels, "range": [len(rows) - 0.5, -0.5]}
    low, high = min([0.0, *value]), max([1.0, *value])

    def bars(amounts: list[float], colors: list[str] | str, signed: bool) -> Trace:
        texts = [number(amount, signed) for amount in amounts]
        return {
            **{"type": "bar", "orientation": "h", "x": amounts, "y": places, "text": texts, "cliponaxis": False},
            **{"textposition": "outside", "marker": {"color": colors}, "hoverinfo": "none"},
            "customdata": [f"{len(e.layers)}.{j}" for j in rows],
        }

    what = "∂C/∂z" if e.trained.learner.loss.from_logits else "∂C/∂a"
    panels = [
        Panel(
            f"{kind} (bar) and target (|)",
            [bars(value, PALE, False), _targets(e, rows)],
            {"range": [low, high * 1.25]},
            classes,
        ),
        Panel(f"it should move by −{what}", [bars(wish, colors(wish), True)], wide(wish), _silent(classes), 0.8),
        Panel(f"cost: together {number(e.cost)}", [bars(cost, PALE, False)], wide(cost), _silent(classes), 0.6),
    ]
    if len(names.shape) == 2:
        panels.insert(0, Panel("the example", [picture(e.x, names.shape)], *bare(), width=0.75))
    return Chart(
        [panels], height=70 + 24 * max(9 if len(names.shape) == 2 else 3, len(rows)), gap=0.05, left=40, bottom=24
    )


def beginning(e: Explanation, began: Moment) -> Chart:
    """The outputs before the first step and now, with their targets, and how large δ was and is in each layer."""
    names, rows, now = Names(e), shown(e, len(e.layers)), moment(e)
    outputs_, places = torch.stack([began.output, now.output]), list(range(len(rows)))
    values, kind = confidence(outputs_, e.trained.config.loss)
    span = [min(0.0, values[:, rows].min().item()), max(1.0, values[:, rows].max().item()) * 1.25]
    labels = [names.classes[j] for j in rows]
    classes = {"tickvals": places, "ticktext": labels, "range": [len(rows) - 0.5, -0.5]}
    panels: list[Panel] = []
    for what, row in zip(
        ("before the first step", f"after {now.steps:,} steps"), values[:, rows].tolist(), strict=True
    ):
        bars: Trace = {"type": "bar", "orientation": "h", "x": row, "y": places, "hoverinfo": "none"}
        bars |= {"text": list(map(number, row)), "textposition": "outside", "cliponaxis": False}
        bars["marker"] = {"color": PALE}
        axis = classes if not panels else _silent(classes)
        panels.append(Panel(f"{kind} {what}", [bars, _targets(e, rows)], {"range": span}, axis))
    layers = [f"layer {layer.number}" for layer in e.layers]
    sizes: list[Trace] = []
    for one, color, when in ((began, PALE, "before the first step"), (now, INK, "now")):
        line: Trace = {"type": "scatter", "mode": "lines+markers", "x": list(range(len(layers))), "name": when}
        line |= {"y": [size or None for size in one.deltas], "line": {"color": color, "width": 2}}
        line |= {"marker": {"symbol": "circle", "size": 9, "color": color}, "hovertemplate": "%{y:.2e}"}
        sizes.append(line)
    below = {"tickvals": list(range(len(layers))), "ticktext": layers, "range": [-0.5, len(layers) - 0.5]}
    upward = {"type": "log", "gridcolor": GRID, "showgrid": True}
    if exponents := [log10(size) for size in (*began.deltas, *now.deltas) if size]:
        upward |= {"dtick": 1, "range": [floor(min(exponents)), floor(max(exponents)) + 1]}
    panels.append(Panel("RMS of δ: gray then, black now", sizes, below, upward, 0.8))
    return Chart([panels], height=70 + 24 * max(6, len(rows)), gap=0.08, left=40, bottom=40)


def neuron(e: Explanation, l: int, j: int) -> Chart:
    """The sums that a neuron is a part of, and the three ways to move it."""
    names, layer = Names(e), e.layers[l - 1]
    forward = waterfall(
        [("b", layer.b[j].item()), *_named(layer.z_terms[j], lambda k: names.brief(l - 1, k))], layer.z[j].item(), "z"
    )
    title = in_units("z = b + Σ w·a, its largest terms", torch.tensor(forward["y"]))
    top = [Panel(title, [forward], words(), room_above(forward))]
    if l < len(e.layers):
        asked = e.layers[l].wishes_before[:, j]
        backward = waterfall(_named(asked, lambda i: names.brief(l + 1, i)), asked.sum().item(), "−∂C/∂a")
        what = "outputs ask" if l + 1 == len(e.layers) else f"neurons of layer {l + 1} ask"
        title = in_units(f"BP2: −δ·w, what the {what}", torch.tensor(backward["y"]))
        top.append(Panel(title, [backward], words(), room_above(backward)))
    weights, pixels = -layer.dW[j], layer.wishes_before[j]
    bias = -layer.db[j].item()
    if l == 1 and len(names.shape) == 2:
        bottom = [
            Panel("weights w", [picture(layer.W[j], names.shape, signed=True)], *bare()),
            Panel("BP4: weights should move by −δ·a", [picture(weights, names.shape, signed=True)], *bare()),
            Panel("−δ·w: the picture it would like", [picture(pixels, names.shape, signed=True)], *bare()),
        ]
    else:
        brightest = layer.a_before.abs().argsort(descending=True, stable=True)[:TERMS].tolist()
        heaviest = layer.W[j].abs().argsort(descending=True, stable=True)[:TERMS].tolist()
        first = [("bias", bias), *((names.brief(l - 1, k), weights[k].item()) for k in brightest)]
        second = [(names.brief(l - 1, k), pixels[k].item()) for k in heaviest]
        bottom = [
            Panel("BP3, BP4: bias −δ, weights −δ·a, brightest a first", [columns_of(first)], words(), {}),
            Panel("BP2: activations before, −δ·w, heaviest w first", [columns_of(second)], words(), {}),
        ]
    return Chart([top, bottom], height=560, heights=[1.0, 1.0])


def adding_up(e: Explanation, l: int) -> Chart:
    """How the wishes of layer l's neurons for the layer before add up there, and become its δ."""
    names, layer, before = Names(e), e.layers[l - 1], e.layers[l - 2]
    rows, columns = shown(e, l), shown(e, l - 1)
    wishes = layer.wishes_before[:, columns]
    parts = [wishes[rows]]
    labels = [names.full(l, j) if l == len(e.layers) else names.brief(l, j) for j in rows]
    if len(rows) < len(wishes):
        parts.append((wishes.sum(0) - wishes[rows].sum(0)).unsqueeze(0))
        labels.append(f"{len(wishes) - len(rows)} others")
    gap = torch.full((1, len(columns)), torch.nan, dtype=torch.float64)
    parts += [gap, -before.da[columns].unsqueeze(0), gap, -before.delta[columns].unsqueeze(0)]
    labels += ["", "sum: −∂C/∂a", "", "× σ′(z): −δ"]
    table = torch.cat(parts)
    sums = cells(table, len(columns) <= 20) | {"customdata": [[f"{l - 1}.{k}" for k in columns]] * len(table)}
    named = [i for i, label in enumerate(labels) if label]
    vertical = {"tickvals": named, "ticktext": [labels[i] for i in named], "autorange": "reversed"}
    ticks = {"tickvals": list(range(len(columns))), "ticktext": [str(k) for k in columns]}
    ticks |= {"title": {"text": f"neuron of layer {l - 1}"}}
    who = "output" if l == len(e.layers) else f"neuron of layer {l}"
    title = f"BP2: what each {who} asks of each neuron of layer {l - 1}: −δ·w"
    return Chart(
        [[Panel(in_units(title, table), [sums], ticks, vertical)]],
        height=86 + max(16, min(24, 700 // len(table))) * len(table),
        left=120,
        bottom=50,
    )


def sensitivity(e: Explanation) -> Chart:
    """|∂C/∂w| of all weights, in order, for each layer."""
    traces: list[Trace] = []
    for layer, color in zip(e.layers, cycle(LAYERS), strict=False):
        sizes = layer.dW.abs().flatten().sort(descending=True)[0]
        sizes = sizes[sizes > 0]
        if len(sizes) == 0:
            continue
        at = torch.logspace(0, torch.log10(torch.tensor(float(len(sizes)))).item(), 200).round().long().unique() - 1
        line: Trace = {"type": "scatter", "mode": "lines", "x": (at + 1).tolist(), "y": sizes[at].tolist()}
        line |= {"line": {"color": color, "width": 2.5}, "hovertemplate": "%{y:.2e}"}
        line["name"] = (
            f"layer {layer.number}: {layer.W.numel():,} weights, {layer.W.numel() - len(sizes):,} at exactly 0"
        )
        traces.append(line)
    grid = {"type": "log", "gridcolor": GRID, "showgrid": True}
    horizontal = grid | {"dtick": 1, "title": {"text": "rank of the weight in its layer"}}
    vertical = grid | {"title": {"text": "|∂C/∂w|"}} | ({"dtick": 1} if _decades(e.sensitivities) < 12 else {})
    panel = Panel("how sensitive the cost is to each weight", traces, horizontal, vertical)
    return Chart([[panel]], height=340, left=70, legend=True)


def batch(e: Explanation) -> Chart:
    """A column for each example, a row for each of some parameters: what the example wants of it; last the average."""
    names, columns = Names(e), range(min(COLUMNS, len(e.batch.y)))
    positions_, labels = _telling_parameters(e)
    wishes = -e.batch.gradients[: len(columns)][:, positions_].T
    gap = torch.full((len(positions_), 1), torch.nan, dtype=torch.float64)
    table = torch.cat([wishes, gap, -e.batch.average[positions_].unsqueeze(1)], dim=1)
    heads = [names.classes[int(e.batch.y[i])] for i in columns]
    heads[0] = f"<b>this: {heads[0]}</b>"
    ticks: dict[str, object] = {
        "tickvals": [*columns, len(columns) + 1],
        "ticktext": [*heads, f"<b>average of {len(e.batch.y)}</b>"],
    }
    ticks["narrow"] = {"ticktext": ["<b>this</b>", *heads[1:], "<b>average</b>"], "tickangle": -90}
    edges = {"range": [-0.5, len(columns) + 1.5], "automargin": True}
    vertical = {"tickvals": list(range(len(labels))), "ticktext": labels, "autorange": "reversed"}
    rows = [
        [
            Panel(
                in_units("what each example wants of a parameter, −∂C/∂θ", table),
                [cells(table, True)],
                edges | ticks,
                vertical,
            )
        ]
    ]
    height, heights = 80 + 24 * len(labels), [1.0]
    if len(names.shape) == 2:
        h, w = names.shape
        strip = torch.full((h, (len(columns) + 2) * (w + 2)), torch.nan, dtype=torch.float64)
        for i in columns:
            strip[:, i * (w + 2) + 1 : i * (w + 2) + 1 + w] = e.batch.x[i].view(h, w)
        pictures = picture(strip.flatten(), tuple(strip.shape))
        pictures |= {"x0": -0.5 + 0.5 / (w + 2), "dx": 1 / (w + 2)}
        across, down = bare()
        rows.insert(0, [Panel("examples of the mini-batch", [pictures], across | edges, down | {"scaleanchor": None})])
        height, heights = height + 102, [66.0, 24.0 * len(labels)]
    return Chart(rows, height=height, heights=heights, between=36, left=150)


def step(e: Explanation, r: int) -> Chart:
    """What a step against this example's gradient, and one against the average's, does to every example's cost."""
    panels = []
    for what, steps, agreement in (
        ("a step by this example's wish alone", e.own_step, e.batch.agreement),
        ("a step by the average wish", e.average_step, e.batch.agreement_with_average),
    ):
        panels.append(_after_step(e, r, what, steps, agreement))
    return Chart([panels], height=380, gap=0.1, between=108, left=84)


def _after_step(e: Explanation, r: int, what: str, steps: Steps, agreement: Tensor) -> Panel:
    names = Names(e)
    change = (steps.costs[r] - e.batch.costs).tolist()
    x = agreement.tolist()
    hover = []
    for i in range(len(x)):
        name = html.escape(e.batch.names[i])
        costs = f"cost {number(e.batch.costs[i].item())} → {number(steps.costs[r, i].item())}"
        hover.append(f"<b>{name}: {names.classes[int(e.batch.y[i])]}</b><br>{costs}<br>cosine {number(x[i])}")
    first: Trace = {"type": "scatter", "mode": "markers", "x": x, "y": steps.predicted[r].tolist(), "hoverinfo": "skip"}
    first["marker"] = {"symbol": "circle-open", "size": 9, "color": PALE, "line": {"color": PALE, "width": 1.2}}
    first["name"] = "to first order"
    dots: Trace = {"type": "scatter", "mode": "markers", "x": x, "y": change, "hovertext": hover, "hoverinfo": "text"}
    symbols = ["star" if i == 0 else "circle" for i in range(len(x))]
    own = [RING if i == 0 else INK for i in range(len(x))]
    dots["marker"] = {"symbol": symbols, "size": [16 if i == 0 else 9 for i in range(len(x))], "color": own}
    zero: Trace = {"type": "scatter", "mode": "lines", "x": [-1.05, 1.05], "y": [0, 0], "hoverinfo": "skip"}
    zero["line"] = {"color": INK, "width": 1}
    wrapped = {"title": {"text": "cosine: agreement of its wish<br>with the step"}}
    horizontal = {
        "range": [-1.05, 1.05],
        "title": {"text": "cosine: agreement of its wish with the step"},
        "narrow": wrapped,
    }
    return Panel(what, [zero, first, dots], horizontal, {"title": {"text": "change of its cost"}})


def _targets(e: Explanation, rows: list[int]) -> Trace:
    """A tick for each of these outputs."""
    ticks: Trace = {"type": "scatter", "mode": "markers", "hoverinfo": "none"}
    ticks |= {"x": e.targets[rows].tolist(), "y": list(range(len(rows)))}
    ticks["marker"] = {"symbol": "line-ns", "size": 16, "color": INK, "line": {"width": 3, "color": INK}}
    return ticks


def _telling_parameters(e: Explanation) -> tuple[list[int], list[str]]:
    """Positions in θ of the few parameters of every layer that the average would move most, and their names."""
    each = max(2, 12 // len(e.layers))
    positions_, labels, start = [], [], 0
    for layer in e.layers:
        n_out, n_in = layer.W.shape
        piece = e.batch.average[start : start + n_out * (n_in + 1)]
        for place in piece.abs().argsort(descending=True, stable=True)[:each].sort()[0].tolist():
            positions_.append(start + place)
            is_bias = place >= n_out * n_in
            where = f"bias[{place - n_out * n_in}]" if is_bias else f"weight[{place // n_in}, {place % n_in}]"
            labels.append(f"layer{layer.number}.{where}")
        start += len(piece)
    return positions_, labels


def _named(terms: Tensor, name: Callable[[int], str]) -> list[tuple[str, float]]:
    """The largest terms, in their own order, and the others together."""
    most = terms.abs().argsort(descending=True, stable=True)[:TERMS].sort()[0]
    named = [(name(k), terms[k].item()) for k in most.tolist()]
    if len(terms) > len(most):
        named.append((f"{len(terms) - len(most)} others", (terms.sum() - terms[most].sum()).item()))
    return named


def _silent(axis: dict[str, object]) -> dict[str, object]:
    return axis | {"showticklabels": False, "narrow": {"showticklabels": True}}


def _decades(sizes: Tensor) -> float:
    some = sizes[sizes > 0]
    return (some.max() / some.min()).log10().item() if len(some) else 0.0
