"""Plotly's traces for wishes and sums, and numbers as one writes them. Everywhere blue wants up, vermilion down."""

from collections.abc import Sequence
from itertools import accumulate
from math import floor, log10

import torch
from torch import Tensor

from explanation.plotly_layout import Trace
from training.dashboard.figures import BLUE, VERMILION

NARROW_COLUMNS = 6  # of a table with numbers on a narrow page; of a larger one colors are left, and a tap tells
INK, PALE, RING = "#333333", "#b9b9b9", "#E69F00"
WISHES = [[0.0, VERMILION], [0.5, "#ffffff"], [1.0, BLUE]]
GRAYS = [[0.0, "#000000"], [1.0, "#ffffff"]]


def number(value: float, sign: bool = False, digits: int = 3) -> str:
    """So many digits, as one writes them."""
    text = f"{value:{'+' if sign else ''}.{digits}g}"
    if "e" in text:
        mantissa, exponent = text.split("e")
        text = f"{mantissa}·{_power_of_ten(int(exponent))}"
    return text.replace("-", "−")


def _power_of_ten(exponent: int) -> str:
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def waterfall(terms: Sequence[tuple[str, float]], total: float, name: str) -> Trace:
    """Terms, one on top of the other, and what they come to."""
    y = [value for _, value in terms]
    unit, full = unit_of(torch.tensor([*y, total])), max(map(abs, y))
    decimals = 2 if unit < 1 or full == 0 else max(2, 1 - floor(log10(full)))
    return {
        "type": "waterfall",
        "x": _distinct([*(label for label, _ in terms), f"<b>{name}</b>"]),
        "y": [*y, total],
        "measure": ["relative"] * len(terms) + ["total"],
        "text": [f"{value / unit:+.{decimals}f}".replace("-", "−") for value in (*y, total)],
        "textposition": "outside",
        "textfont": {"size": 9},
        "constraintext": "none",
        "textangle": 0,
        "cliponaxis": False,
        "increasing": {"marker": {"color": BLUE}},
        "decreasing": {"marker": {"color": VERMILION}},
        "totals": {"marker": {"color": INK}},
        "connector": {"line": {"width": 0.5, "color": PALE}},
        "hoverinfo": "x+text",
        "narrow": {"textangle": -90},
    }


def room_above(sum_: Trace) -> dict[str, object]:
    """A vertical axis with room for the numbers of a waterfall, which stand upright on a narrow page."""
    heights = [0.0, *accumulate(sum_["y"][:-1])]
    room = 0.2 * ((max(heights) - min(heights)) or 1.0)
    return {"narrow": {"range": [min(heights) - room, max(heights) + room]}}


def columns_of(named: Sequence[tuple[str, float]]) -> Trace:
    values = [value for _, value in named]
    return {
        "type": "bar",
        "x": _distinct([name for name, _ in named]),
        "y": values,
        "marker": {"color": colors(values)},
        "hovertext": [number(value, True) for value in values],
        "hoverinfo": "x+text",
    }


def cells(table: Tensor, with_text: bool) -> Trace:
    """A table of wishes, symmetric in color; NaN is an empty cell."""
    full = table.nan_to_num().abs().max().item() or 1.0
    values = [[None if value != value else value for value in row] for row in table.tolist()]
    scale = unit_of(table)
    trace: Trace = {"type": "heatmap", "z": values, "zmin": -full, "zmax": full, "colorscale": WISHES}
    trace |= {"showscale": False, "xgap": 1, "ygap": 1, "hovertemplate": "%{z:.4g}<extra></extra>"}
    if with_text:
        trace["text"] = [["" if v is None else _cell(v / scale) for v in row] for row in values]
        trace |= {"texttemplate": "%{text}", "textfont": {"size": 10}}
        if table.shape[1] > NARROW_COLUMNS:
            trace["narrow"] = {"texttemplate": ""}
    return trace


def unit_of(table: Tensor) -> float:
    """1, or for small entries the power of ten in which a table is written with three decimals."""
    full = table.nan_to_num().abs().max().item()
    return 1.0 if full == 0 or full >= 0.01 else 10.0 ** (floor(log10(full)) + 1)


def in_units(title: str, table: Tensor) -> str:
    unit = unit_of(table)
    return title if unit == 1 else f"{title} (in {_power_of_ten(round(log10(unit)))})"


def _cell(value: float) -> str:
    """Three decimals; a dot for what is nothing beside the others."""
    return "·" if abs(value) < 0.0005 else f"{value:+.3f}".replace("-", "−")


def picture(values: Tensor, shape: tuple[int, ...], signed: bool = False) -> Trace:
    """Pixels: gray from 0 to 1, or wishes and weights about white."""
    full = values.nan_to_num().abs().max().item() or 1.0
    rows = [[None if v != v else float(f"{v:.3g}") for v in row] for row in values.view(shape).tolist()]
    trace: Trace = {
        "type": "heatmap",
        "z": rows,
        "showscale": False,
        "hovertemplate": "(%{y}, %{x}): %{z:.3g}<extra></extra>",
    }
    if signed:
        return trace | {"zmin": -full, "zmax": full, "colorscale": WISHES}
    return trace | {"zmin": 0, "zmax": 1, "colorscale": GRAYS}


def bare() -> tuple[dict[str, object], dict[str, object]]:
    """Axes of a picture: none, and square pixels."""
    return {"visible": False, "constrain": "domain"}, {"visible": False, "autorange": "reversed", "scaleanchor": "x"}


def words() -> dict[str, object]:
    return {"type": "category", "tickangle": -45}


def wide(values: Sequence[float]) -> dict[str, object]:
    """Room for the numbers beside the bars."""
    low, high = min([0.0, *values]), max([0.0, *values])
    room = 0.35 * ((high - low) or 1.0)
    return {"range": [low - (room if low < 0 else 0), high + (room if high > 0 else 0)], "nticks": 4}


def colors(values: Sequence[float]) -> list[str]:
    return [BLUE if value > 0 else VERMILION for value in values]


def rgba(color: str, alpha: float) -> str:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha:.2f})"


def _distinct(names: Sequence[str]) -> list[str]:
    """Plotly's categories must differ: a repeated name gets invisible spaces."""
    return [name + "\u200b" * list(names[:i]).count(name) for i, name in enumerate(names)]
