"""Figures as data: panels of Plotly traces, laid out once, shown by Plotly in a page or drawn by matplotlib.

A trace is one of Plotly's, of type bar, heatmap, scatter or waterfall, as plain data.
"""

import html
import re
from dataclasses import dataclass, field
from textwrap import wrap
from typing import Any

Trace = dict[str, Any]

WIDTH, NARROW = 1080, 343  # pixels: of a page that is wide, and of one on a telephone
TOP, LINE = 36, 16  # for a title of one line, and for another line
TITLE_LETTERS = 38  # in a line, on a narrow page
LEGEND_LINE = 20
FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"


@dataclass
class Panel:
    """One pair of axes; `xaxis` and `yaxis` are Plotly's settings for them, `width` its share of the row."""

    title: str
    traces: list[Trace]
    xaxis: dict[str, Any] = field(default_factory=dict)
    yaxis: dict[str, Any] = field(default_factory=dict)
    width: float = 1.0


@dataclass
class Chart:
    """Rows of panels. Sizes are in pixels, `gap` is the share of the width between the panels of a row.

    A trace or an axis may have an entry "narrow": the settings that replace its own on a narrow page.
    """

    rows: list[list[Panel]]
    height: int = 320
    heights: list[float] | None = None  # shares of the rows; equal if left out
    gap: float = 0.08
    between: int = 88  # pixels between rows, for axis and title
    left: int = 60  # pixels for the names on the first vertical axis
    bottom: int = 44
    legend: bool = False

    def to_plotly(self) -> dict[str, Any]:
        """What Plotly.react takes, data and layout; and what is other on a narrow page, by trace, and its layout."""
        panels = [panel for row in self.rows for panel in row]
        traces = [trace | _axes(i) for i, panel in enumerate(panels) for trace in panel.traces]
        other = {i: trace["narrow"] for i, trace in enumerate(traces) if "narrow" in trace}
        return {
            "data": [_fitting(trace, False) for trace in traces],
            "layout": self._layout(narrow=False),
            "narrow": {"traces": other, "layout": self._layout(narrow=True)},
        }

    def _layout(self, narrow: bool) -> dict[str, Any]:
        """Narrow, every panel is a row of its own, titles are wrapped, and names get the room that they need."""
        inner = self.height - TOP - self.bottom - self.between * (len(self.rows) - 1)
        shares = self.heights or [1.0] * len(self.rows)
        rows = [(row, inner * share / sum(shares)) for row, share in zip(self.rows, shares, strict=True)]
        left = self.left
        if narrow:
            rows = [([panel], height) for row, height in rows for panel in row]
            left = max(_room(panel) for row, _ in rows for panel in row)
        lines = [max(_title(panel.title, narrow).count("<br>") for panel in row) for row, _ in rows]
        bottom = self.bottom + (LEGEND_LINE * len(self.rows[0][0].traces) if narrow and self.legend else 0)
        top = TOP + LINE * lines[0]
        whole = sum(height for _, height in rows) + sum(self.between + LINE * more for more in lines[1:])
        layout: dict[str, Any] = {
            "width": NARROW if narrow else WIDTH,
            "height": round(whole) + top + bottom,
            "margin": {"l": left, "r": 12 if narrow else 20, "t": top, "b": bottom},
            "font": {"family": FONT, "size": 11 if narrow else 12, "color": "#222"},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "showlegend": self.legend,
            "hovermode": "closest",
            "hoverlabel": {"align": "left"},
            "dragmode": False,
            "annotations": [],
            "bargap": 0.25,
        }
        if narrow and self.legend:
            layout["legend"] = {"x": 0, "xanchor": "left", "y": 0, "yref": "container", "yanchor": "bottom"}
        offset, count = 0.0, 0  # pixels from the top of the first row, and panels so far
        for (row, height), more in zip(rows, lines, strict=True):
            offset += (self.between + LINE * more) if offset else 0
            up, down = 1 - offset / whole, max(0.0, 1 - (offset + height) / whole)
            start, across = 0.0, (1 - self.gap * (len(row) - 1)) / sum(panel.width for panel in row)
            for panel in row:
                axes, end = _axes(count), min(1.0, start + panel.width * across)
                quiet = {"zeroline": False, "showgrid": False, "exponentformat": "power"}
                x, y = _fitting(panel.xaxis, narrow), _fitting(panel.yaxis, narrow)
                if y.get("scaleanchor"):
                    y["scaleanchor"] = axes["xaxis"]
                for name, domain, anchor, own in (
                    ("xaxis", [start, end], "yaxis", x),
                    ("yaxis", [down, up], "xaxis", y),
                ):
                    layout[f"{name}{axes[name][1:]}"] = quiet | {"domain": domain, "anchor": axes[anchor]} | own
                title = {"x": start, "y": up, "xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom"}
                title |= {"text": _title(panel.title, narrow), "showarrow": False, "yshift": 8, "align": "left"}
                title |= {"font": {"size": 12 if narrow else 13}, "xshift": -left if narrow else 0}
                layout["annotations"].append(title)
                start, count = end + self.gap, count + 1
            offset += height
        return layout


def _axes(i: int) -> dict[str, str]:
    """Of a chart's i-th panel; Plotly spells the first as nothing."""
    return {f"{letter}axis": f"{letter}{i + 1 if i else ''}" for letter in "xy"}


def _fitting(settings: dict[str, Any], narrow: bool) -> dict[str, Any]:
    others = settings.get("narrow", {}) if narrow else {}
    return {key: value for key, value in settings.items() if key != "narrow"} | others


def _title(text: str, narrow: bool) -> str:
    return f"<b>{'<br>'.join(wrap(text, TITLE_LETTERS))}</b>" if narrow else f"<b>{text}</b>"


def _room(panel: Panel) -> int:
    """Pixels for what stands beside a vertical axis on a narrow page."""
    if not panel.yaxis.get("visible", True):
        return 0
    names = [re.sub(r"<[^>]*>", "", html.unescape(str(name))) for name in panel.yaxis.get("ticktext", ["0.00000"])]
    return 14 + round(5.8 * max(map(len, names))) + (20 if "title" in panel.yaxis else 0)
