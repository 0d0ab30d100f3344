"""Figures as data: panels of Plotly traces, laid out once, shown by Plotly in a page or drawn by matplotlib.

A trace is one of Plotly's, of type bar, heatmap, scatter or waterfall, as plain data.
"""

from dataclasses import dataclass, field
from typing import Any

Trace = dict[str, Any]

WIDTH = 1080  # pixels
TOP = 36  # for the title
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
    """Rows of panels. Sizes are in pixels, `gap` is the share of the width between the panels of a row."""

    rows: list[list[Panel]]
    height: int = 320
    heights: list[float] | None = None  # of the rows, in proportion
    gap: float = 0.08
    between: int = 88  # pixels between rows, for axis and title
    left: int = 60  # pixels for the names on the first vertical axis
    bottom: int = 44
    legend: bool = False

    def to_plotly(self) -> dict[str, Any]:
        """What Plotly.react takes: data and layout."""
        data: list[Trace] = []
        layout: dict[str, Any] = {
            "width": WIDTH,
            "height": self.height,
            "margin": {"l": self.left, "r": 20, "t": TOP, "b": self.bottom},
            "font": {"family": FONT, "size": 12, "color": "#222"},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "showlegend": self.legend,
            "hovermode": "closest",
            "hoverlabel": {"align": "left"},
            "annotations": [],
            "bargap": 0.25,
        }
        between = self.between / (self.height - TOP - self.bottom)
        shares = self.heights or [1.0] * len(self.rows)
        unit = (1 - between * (len(self.rows) - 1)) / sum(shares)
        top, number = 1.0, 0
        for row, share in zip(self.rows, shares, strict=True):
            bottom = max(0.0, top - share * unit)
            left = 0.0
            across = (1 - self.gap * (len(row) - 1)) / sum(panel.width for panel in row)
            for panel in row:
                number += 1
                right = min(1.0, left + panel.width * across)
                name = "" if number == 1 else str(number)
                quiet = {"zeroline": False, "showgrid": False, "exponentformat": "power"}
                layout[f"xaxis{name}"] = quiet | {"domain": [left, right], "anchor": f"y{name}"} | panel.xaxis
                layout[f"yaxis{name}"] = quiet | {"domain": [bottom, top], "anchor": f"x{name}"} | panel.yaxis
                if layout[f"yaxis{name}"].get("scaleanchor"):
                    layout[f"yaxis{name}"]["scaleanchor"] = f"x{name}"
                title = {"x": left, "y": top, "xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom"}
                title |= {"text": f"<b>{panel.title}</b>", "showarrow": False, "yshift": 8, "font": {"size": 13}}
                layout["annotations"].append(title)
                data += [trace | {"xaxis": f"x{name}", "yaxis": f"y{name}"} for trace in panel.traces]
                left = right + self.gap
            top = bottom - between
        return {"data": data, "layout": layout}
