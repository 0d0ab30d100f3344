"""The page of an explanation: one HTML file that needs no network, Plotly included."""

import html
import json
from pathlib import Path
from string import Template
from typing import Any

import torch
from plotly.offline import get_plotlyjs
from torch import Tensor

from explanation import figures, network_figure
from explanation.beginning import Moment, moment
from explanation.network_figure import Names, most_shown, shown
from explanation.numbers import Explanation, Layer, Steps, Weight
from explanation.plotly_layout import Chart
from explanation.plotly_traces import number
from manual_backprop.losses import LOSSES
from training.evaluation import confidence

TEMPLATE = Path(__file__).with_name("page.html")
LISTED = 5  # most and least sensitive weights


def charts(e: Explanation, began: Moment | None = None) -> dict[str, Chart]:
    """The page's figures as they are before anybody clicks, by name."""
    found = {"outputs": figures.outputs(e), "network": network_figure.network(e)}
    found["neuron"] = figures.neuron(e, *_start(e))
    for l in range(len(e.layers), 1, -1):
        found[f"adding_up_layer{l}"] = figures.adding_up(e, l)
    found |= {"sensitivity": figures.sensitivity(e), "batch": figures.batch(e)}
    if began:
        found["beginning"] = figures.beginning(e, began)
    return found | {"step": figures.step(e, _first_rate(e))}


def page(e: Explanation, what: str, why: str = "", began: Moment | None = None) -> str:
    """The HTML; `what` names the example ("training example 7"), `why` says why it was picked, if it was."""
    sums = {l: 2 + i for i, l in enumerate(range(len(e.layers), 1, -1), start=1)}  # layer → section
    section = 2 + len(sums)
    most, least = _extremes(e)
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=f"What {html.escape(what)} wants",
        why=f"<p>It was picked because {html.escape(why)}.</p>" if why else "",
        facts=_facts(e),
        outputs_text=_outputs_text(e),
        adding_up="\n".join(_adding_up(e, l, number) for l, number in sums.items()),
        sensitivity_number=section + 1,
        sensitivity_text=_sensitivity_text(e, most, least),
        most=_weights_table("the most sensitive", most, e.layers),
        least=_weights_table("the least sensitive (but not 0)", least, e.layers),
        batch_number=section + 2,
        batch_text=_batch_text(e),
        step_number=section + 3,
        beginning=_beginning(e, began, section + 4) if began else "",
        last_rate=len(e.rates) - 1,
        first_rate=_first_rate(e),
        plotly=get_plotlyjs(),
        data=json.dumps(_rounded(_data(e, began)), ensure_ascii=False, allow_nan=False),
    )


def _data(e: Explanation, began: Moment | None) -> dict[str, Any]:
    """What the page's script draws: charts, and what clicks and the slider show instead of them."""
    every = charts(e, began)
    fixed = [name for name in every if name not in ("neuron", "step")]
    neurons = [(l, j) for l in range(1, len(e.layers) + 1) for j in shown(e, l)]
    network = every["network"].rows[0][0].traces
    return {
        "charts": {name: every[name].to_plotly() for name in fixed},
        "clickable": ["outputs", "network", *(name for name in fixed if name.startswith("adding_up"))],
        "neurons": {f"{l}.{j}": _neuron(e, l, j) for l, j in neurons},
        "weights": network_figure.weights(e),
        "steps": [_step(e, r) for r in range(len(e.rates))],
        "marks": [i for i, trace in enumerate(network) if trace.get("meta") == "mark"],
        "start": "{}.{}".format(*_start(e)),
    }


def _start(e: Explanation) -> tuple[int, int]:
    """The neuron that is selected at first: the target's."""
    return len(e.layers), e.label


def _first_rate(e: Explanation) -> int:
    return len(e.rates) // 2


def _rounded(value: Any) -> Any:
    """The same with seven digits a number, which halves the page."""
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value


def _equation(label: str, text: str) -> str:
    return f'<span class="eq"><span class="label">{label}</span>{text}</span>'


def _bold(value: float, id_: str = "") -> str:
    return f'<b id="{id_}">{number(value)}</b>' if id_ else f"<b>{number(value)}</b>"


def _times(a: float, b: float) -> str:
    return f"{number(a)} · {number(b) if b >= 0 else f'({number(b)})'}"


def _facts(e: Explanation) -> str:
    config, sizes = e.trained.config, [len(e.x), *(len(layer.z) for layer in e.layers)]
    kinds = ", ".join(dict.fromkeys(layer.activation for layer in e.layers))
    steps = e.trained.learner.steps
    facts = [f"{'-'.join(map(str, sizes))}, {kinds}, {config.loss} cost, after {steps:,} steps."]
    if max(sizes[1:]) > most_shown(e):
        facts.append(f"The {most_shown(e)} neurons of a layer with the largest |δ| are drawn; sums are over all.")
    facts.append("A wish is a negative gradient: <b class=up>blue up</b>, <b class=down>vermilion down</b>.")
    return " ".join(facts)


def _outputs_text(e: Explanation) -> str:
    names, output, j = Names(e), e.layers[-1], e.label
    said = int(e.output.argmax())
    how = "rightly" if said == j else "wrongly"
    da, slope, delta = (v[j].item() for v in (output.da, output.slope, output.delta))
    what, bp1 = "∂C/∂a", f"δ = ∂C/∂a · σ′(z): for {names.classes[j]} {_times(da, slope)} = {number(delta)}"
    if e.trained.learner.loss.from_logits:
        what, bp1 = "∂C/∂z", f"δ = ∂C/∂z = a − y: for {names.classes[j]} {number(delta)}"
    return (
        f"The target is <b>{names.classes[j]}</b>, the network {how} says <b>{names.classes[said]}</b>. "
        f"Its cost is {_bold(e.cost, 'cost')}, {LOSSES[e.trained.config.loss]().formula}. "
        f"Each output's wish, −{what}, says how far and which way it should move.{_equation('BP1', bp1)}"
    )


def _neuron(e: Explanation, l: int, j: int) -> dict[str, Any]:
    """What a click on a neuron shows."""
    names, layer = Names(e), e.layers[l - 1]
    z, a, da, slope, delta = (v[j].item() for v in (layer.z, layer.a, layer.da, layer.slope, layer.delta))
    k_a, k_w = int(layer.a_before.abs().argmax()), int(layer.W[j].abs().argmax())
    sigma = "z" if layer.activation == "identity" else f"{layer.activation}(z)"
    asked = "Σ −δ·w over the layer after" if l < len(e.layers) else "what the cost asks"
    brightest = f"the brightest, {names.full(l - 1, k_a)} (a = {number(layer.a_before[k_a].item())})"
    heaviest = f"the heaviest, from {names.full(l - 1, k_w)} (w = {number(layer.W[j, k_w].item())})"
    lines = [
        f"<h3>{names.full(l, j)}</h3>",
        _equation("z", f"z = b + Σ w·a = {_bold(z, 'z')}, a = {sigma} = {number(a)}"),
        _equation(
            layer.equation,
            f"−∂C/∂a = {asked} = {_bold(-da, 'wish')}; "
            f"−δ = −∂C/∂a · σ′(z) = {_times(-da, slope)} = {_bold(-delta, 'delta')}",
        ),
        "<h3>Three ways to move it, in this example's interest</h3>",
        _equation("BP3", f"its bias: −∂C/∂b = −δ = {_bold(-layer.db[j].item(), 'bias')}"),
        _equation(
            "BP4",
            f"its weights in proportion to the activations: −∂C/∂w = −δ·a; {brightest}: "
            f"{_bold(-layer.dW[j, k_a].item(), 'brightest')}",
        ),
        _equation(
            "BP2",
            f"the activations before in proportion to the weights: −δ·w; {heaviest}: "
            f"{_bold(layer.wishes_before[j, k_w].item(), 'heaviest')}",
        ),
    ]
    return {
        "html": "".join(lines),
        "chart": figures.neuron(e, l, j).to_plotly(),
        "lines": network_figure.highlight(e, l, j),
        "place": network_figure.positions(e)[f"{l}.{j}"],
    }


def _adding_up(e: Explanation, l: int, section: int) -> str:
    last = l == len(e.layers)
    who, again = ("outputs", "") if last else (f"neurons of layer {l}", ", again one layer down")
    equation = f"δ<sup>{l - 1}</sup> = δ<sup>{l}</sup> W<sup>{l}</sup> ⊙ σ′(z<sup>{l - 1}</sup>)"
    return (
        f"<h2>{section} · How the wishes of the {who} add up in layer {l - 1}{again}</h2>"
        f"<p>Each row is one neuron's wishes, −δ·w. A column's sum is −∂C/∂a of a neuron of layer {l - 1}, and times "
        f"σ′(z) its −δ. Click a column to see its terms.</p>"
        f'{_equation("BP2", equation)}<div id="adding_up_layer{l}"></div>'
    )


def _extremes(e: Explanation) -> tuple[list[Weight], list[Weight]]:
    order = e.ranking
    most, least = order[:LISTED].tolist(), order[-LISTED:].flip(0).tolist()
    return [e.weight_at(position) for position in most], [e.weight_at(position) for position in least]


def _sensitivity_text(e: Explanation, most: list[Weight], least: list[Weight]) -> str:
    total, zeros = len(e.sensitivities), len(e.sensitivities) - len(e.ranking)
    if not most:
        return "Every weight's gradient is exactly 0: no small change of a weight changes the cost of this example."
    ratio = abs(most[0].gradient / least[0].gradient)
    times = f"{ratio:,.0f}" if 10 <= ratio < 1e7 else number(ratio)
    rest = f" {zeros:,} of the {total:,} weights have a gradient of exactly 0: δ or a is 0 there." if zeros else ""
    return (
        f"Wiggle <code>{most[0].name}</code>, and the cost changes <b>{times} times</b> as much as if you wiggle "
        f"<code>{least[0].name}</code> as far.{rest}{_equation('BP4', '∂C/∂w = δ·a')}"
    )


def _weights_table(title: str, weights: list[Weight], layers: tuple[Layer, ...]) -> str:
    rows = []
    for weight in weights:
        layer = layers[weight.layer - 1]
        product = _times(layer.delta[weight.j].item(), layer.a_before[weight.k].item())
        name = weight.name.replace("[", "<wbr>[")
        rows.append([f"<code>{name}</code>", number(weight.value), product, _bold(weight.gradient)])
    return _table([title, "w", "δ · a", "∂C/∂w"], rows)


def _table(heads: list[str], rows: list[list[str]]) -> str:
    cells = "".join(f"<tr>{''.join(f'<td>{cell}' for cell in row)}" for row in rows)
    return f"<table><tr>{''.join(f'<th>{head}' for head in heads)}{cells}</table>"


def _batch_text(e: Explanation) -> str:
    others = e.batch.agreement[1:]
    mean, least, most = (number(v.item()) for v in (others.mean(), others.min(), others.max()))
    return (
        f"The average of all {len(e.batch.y)} wishes is −∇C of the mini-batch, a direction in "
        f"{e.batch.average.numel():,} dimensions; of each layer the parameters that it moves most are shown. The "
        f"others' wishes agree with this example's by a cosine of {mean} in the mean, from {least} to {most}."
        f"{_equation('BP3', '∂C/∂b = Σ<sub>batch</sub> δ')}"
        f"{_equation('BP4', '∂C/∂W = δᵀ a, a sum over the batch too; the 1/B is in ∇ₐC')}"
    )


def _beginning(e: Explanation, began: Moment, section: int) -> str:
    names, now, j = Names(e), moment(e), e.label
    values, kind = confidence(torch.stack([began.output, now.output]), e.trained.config.loss)
    rows = [["the network says", *(_says(names, row) for row in values)]]
    rows.append([f"{kind} of the target, {names.classes[j]}", *(number(row[j].item()) for row in values)])
    for what, then, at_end in (
        ("cost of this example", began.cost, now.cost),
        ("length of its gradient, ‖∇C‖", began.gradient, now.gradient),
        *(
            (f"root mean square of δ in layer {l}", *sizes)
            for l, sizes in enumerate(zip(began.deltas, now.deltas, strict=True), 1)
        ),
        ("cosine between its wish and another example's, mean", began.agreement, now.agreement),
    ):
        rows.append([what, number(then), number(at_end)])
    cost, gradient = _became("cost", began.cost, now.cost), _became("gradient", began.gradient, now.gradient)
    return (
        f"<h2>{section} · The same example before the first step</h2>"
        f"<p>Before its first step the network said <b>{_says(names, values[0])}</b>; now it says "
        f"<b>{_says(names, values[1])}</b>. In training this example's {cost}, and its {gradient}.</p>"
        f"{_table(['', 'before the first step', f'after {now.steps:,} steps'], rows)}"
        f'<div id="beginning"></div>'
    )


def _says(names: Names, values: Tensor) -> str:
    j = int(values.argmax())
    return f"{names.classes[j]} ({number(values[j].item())})"


def _became(what: str, then: float, now: float) -> str:
    """ "cost became 12 times smaller" """
    if min(then, now) <= 0 or 0.95 < now / then < 1.05:
        return f"{what} went from {number(then)} to {number(now)}"
    larger, smaller = ("longer", "shorter") if what == "gradient" else ("larger", "smaller")
    return f"{what} became {number(max(now / then, then / now), digits=2)} times {larger if now > then else smaller}"


def _step(e: Explanation, r: int) -> dict[str, Any]:
    heads = ["a step θ ← θ − η ∇C", "by this example's wish alone", "by the average wish"]
    names = ["this example's cost", "to first order", "others that gain", "others that lose", "mean cost of all"]
    columns = [_step_column(e, r, steps) for steps in (e.own_step, e.average_step)]
    return {
        "eta": number(e.rates[r]),
        "html": _table(heads, list(map(list, zip(names, *columns, strict=True)))),
        "chart": figures.step(e, r).to_plotly(),
    }


def _step_column(e: Explanation, r: int, steps: Steps) -> list[str]:
    before, after = e.batch.costs, steps.costs[r]
    others = (after - before)[1:]
    return [
        f"{number(before[0].item())} → {_bold(after[0].item())}",
        number(before[0].item() + steps.predicted[r, 0].item()),
        f"{int((others < 0).sum())}",
        f"{int((others > 0).sum())}",
        f"{number(before.mean().item())} → {_bold(after.mean().item())}",
    ]
