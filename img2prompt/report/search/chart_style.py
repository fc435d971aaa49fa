"""Colours, layout and hover text that all charts share.

Figures have no theme: the page sets light or dark. Plotly is imported when the first figure is
made, because the import takes a second.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from img2prompt.report.search.trial_rows import TrialRow
from img2prompt.report.search.wording import level

if TYPE_CHECKING:
    import plotly.graph_objects as go

FINISHED, STOPPED, FAILED, BEST = "#2a9d8f", "#9099ab", "#d1495b", "#f08c00"
SCALE = [[0.0, "#7a78c8"], [0.5, "#2a9d8f"], [1.0, "#f2a900"]]
"""Low to high; every part is visible on white and on black."""


def figure(x: str, y: str, height: int = 420, **layout: Any) -> go.Figure:
    """Return an empty figure with named axes and the layout that all charts share."""
    import plotly.graph_objects as go

    return go.Figure(
        layout={
            "template": "none",
            "height": height,
            "margin": {"l": 62, "r": 16, "t": 36, "b": 52},
            "hovermode": "closest",
            "legend": {"orientation": "h", "x": 0, "y": 1.01, "yanchor": "bottom"},
            "xaxis": {"title": {"text": x}, "zeroline": False, "automargin": True},
            "yaxis": {"title": {"text": y}, "zeroline": False, "automargin": True},
            **layout,
        }
    )


def below(text: str) -> dict[str, Any]:
    """Return the layout of an axis name below the whole chart.

    Below the axis itself it would be cut off beside long labels.
    """
    return {"title": {"text": text, "x": 0.5, "y": 0, "yanchor": "bottom", "font_size": 12}}


def plain(text: str) -> str:
    """Return text that Plotly shows as it is: it would read tags and entities in it."""
    return escape(text, quote=False)


def describe(row: TrialRow) -> str:
    """Return a trial's setting, layers and cost for a hover box."""
    setting = "<br>".join(plain(f"{name} {level(v)}") for name, v in row["setting"].items())
    layers = ", ".join(f"{len(row['plan'][kind])} {kind}" for kind in ("frozen", "lora", "trained"))
    return (
        f"<b>{plain(row['name'])}</b>, seed {row['seed']}<br>{setting}<br>layers: {layers}<br>"
        f"{row['flop'] / 1e9:,.4g} GFLOP per picture, {len(row['epochs'])} epochs, {row['end']}"
    )
