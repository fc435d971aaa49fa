"""Colours and layout that all charts share.

Figures have no theme: the page sets light or dark. Plotly is imported when the first figure is
made, because the import takes a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import plotly.graph_objects as go

BEST = "#f08c00"
SERIES = (BEST, "#2a9d8f", "#7a78c8", "#d1495b", "#9099ab", "#3d8bd4", "#a0753c", "#c65fb0")
"""Colours of series, the best first; each is visible on white and on black."""


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


def error_bars(
    values: Sequence[float], lows: Sequence[float], highs: Sequence[float], color: str
) -> dict[str, Any]:
    """Return the error bars from `lows` to `highs` of points at `values`."""
    return {
        "type": "data",
        "array": [high - value for high, value in zip(highs, values, strict=True)],
        "arrayminus": [value - low for low, value in zip(lows, values, strict=True)],
        "color": color,
        "thickness": 2,
        "width": 5,
    }


def plain(text: str) -> str:
    """Return text that Plotly shows as it is: it would read tags and entities in it."""
    return escape(text, quote=False)
