"""Charts of a search's trials: score against compute, learning curves, settings, the leaders.

Plotly figures without a theme of their own: the page sets light or dark. Plotly is imported when a
figure is made, as it takes a second.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from img2prompt.report.search.surface import is_number, varying
from img2prompt.report.search.trial_rows import (
    TrialRow,
    by_setting,
    curve,
    flop_spent,
    key,
    mean_score,
    pareto,
    score_at,
    scored,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

FINISHED, STOPPED, FAILED, BEST = "#2a9d8f", "#9099ab", "#d1495b", "#f08c00"
LOOKS = {
    "finished": {"color": FINISHED, "symbol": "circle"},
    "stopped": {"color": STOPPED, "symbol": "circle-open"},
    "failed": {"color": FAILED, "symbol": "x"},
}
SCALE = [[0.0, "#7a78c8"], [0.5, "#2a9d8f"], [1.0, "#f2a900"]]
"""Low to high; each part can be seen on white and on black."""
LEADERS = 10
TICKS = 10
WIDE_RANGE = 20
"""Ratio of the largest to the least value from which an axis shows levels, not distances."""


def figure(x: str, y: str, height: int = 420, **layout: Any) -> go.Figure:
    """An empty figure with named axes; what is drawn for all charts alike."""
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
    """An axis' name in the middle of the whole chart: beside long labels it would be cut off."""
    return {"title": {"text": text, "x": 0.5, "y": 0, "yanchor": "bottom", "font_size": 12}}


def level(value: object) -> str:
    """A setting's value as a reader says it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def describe(row: TrialRow) -> str:
    """A trial for a hover box: its setting, layers and cost."""
    setting = "<br>".join(f"{escape(k)} {escape(level(v))}" for k, v in row["setting"].items())
    layers = ", ".join(f"{len(row['plan'][kind])} {kind}" for kind in ("frozen", "lora", "trained"))
    return (
        f"<b>{escape(row['name'])}</b>, seed {row['seed']}<br>{setting}<br>layers: {layers}<br>"
        f"{row['flop'] / 1e9:,.4g} GFLOP a picture, {len(row['epochs'])} epochs, {row['end']}"
    )


def spent(rows: Sequence[TrialRow]) -> go.Figure:
    """The best score of each trial against the FLOP it took, with the Pareto front."""
    rows = [row for row in scored(rows) if flop_spent(row) > 0]
    chart = figure("FLOP spent on the trial (log scale)", "validation cosine, best epoch")
    cost, best = [flop_spent(row) for row in rows], [curve(row)[-1] for row in rows]
    front = pareto(cost, best)
    chart.add_scatter(
        x=[cost[i] for i in front],
        y=[best[i] for i in front],
        mode="lines",
        line={"shape": "hv", "color": BEST, "width": 2, "dash": "dot"},
        name="Pareto front",
        hoverinfo="skip",
    )
    for end, look in LOOKS.items():
        chosen = [i for i, row in enumerate(rows) if row["end"] == end]
        if chosen:
            chart.add_scatter(
                x=[cost[i] for i in chosen],
                y=[best[i] for i in chosen],
                mode="markers",
                marker={**look, "size": 9, "line": {"width": 1.5, "color": look["color"]}},
                name=f"{end} ({len(chosen)})",
                text=[describe(rows[i]) for i in chosen],
                hovertemplate="%{text}<br>%{x:.3s}FLOP, cosine %{y:.4f}<extra></extra>",
            )
    ticks = _decades(cost) if cost else []
    chart.update_xaxes(type="log", tickvals=ticks, ticktext=[si(tick) for tick in ticks])
    return chart


def _decades(values: Sequence[float]) -> list[float]:
    """Ticks of a log axis within its range: powers of ten, or more where those are few."""
    low, high = min(values) / 1.1, max(values) * 1.1
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
    found: list[float] = []
    for steps in ((1,), (1, 2, 5), range(1, 10), [step / 5 for step in range(5, 50)]):
        found = [step * 10.0**power for power in powers for step in steps]
        found = [tick for tick in found if low <= tick <= high]
        if len(found) > 2:
            break
    return found


def si(number: float) -> str:
    """A number of FLOP with its prefix: 2.5e15 is 2.5P."""
    for power, prefix in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if number >= 10**power:
            return f"{number / 10**power:.3g}{prefix}"
    return f"{number:.3g}"


def curves(rows: Sequence[TrialRow]) -> go.Figure:
    """Validation cosine by epoch: one line a trial, the winner's on top."""
    chart = figure("epoch", "validation cosine")
    rows = scored(rows)
    kinds = [(end, [r for r in rows[1:] if r["end"] == end], LOOKS[end]["color"]) for end in LOOKS]
    for name, chosen, color in [*reversed(kinds), ("the best trial", rows[:1], BEST)]:
        if chosen:
            chart.add_scatter(
                **_lines(chosen),
                mode="lines+markers",
                name=name,
                line={"color": color, "width": 3 if color == BEST else 1.3},
                marker={"size": 7 if color == BEST else 4},
                opacity=1 if color == BEST else 0.75,
                hovertemplate="%{text}<br>epoch %{x}: cosine %{y:.4f}<extra></extra>",
            )
    longest = max(len(row["epochs"]) for row in rows)
    chart.update_xaxes(dtick=1 if longest <= 12 else None, range=[0.8, longest + 0.2])
    return chart


def _lines(rows: Sequence[TrialRow]) -> dict[str, list[Any]]:
    """All trials in one trace, with gaps between: hundreds of traces would be slow."""
    x, y, text = [], [], []
    for row in rows:
        x += [*(epoch["epoch"] for epoch in row["epochs"]), None]
        y += [*(epoch["val_cosine"] for epoch in row["epochs"]), None]
        text += [describe(row)] * (len(row["epochs"]) + 1)
    return {"x": x, "y": y, "text": text}


def parallel(rows: Sequence[TrialRow], epochs: int) -> go.Figure:
    """Parallel coordinates: one line a trial through its settings to its score at `epochs`."""
    chart = figure("", "", height=430, margin={"l": 60, "r": 70, "t": 60, "b": 24})
    rows = [row for row in scored(rows) if not math.isnan(score_at(row, epochs))]
    scores = [score_at(row, epochs) for row in rows]
    columns = varying(rows) or {k: [row["setting"][k] for row in rows] for k in rows[0]["setting"]}
    dimensions = [_dimension(name, values) for name, values in columns.items()]
    low, high = min(scores), max(scores)
    edge = max(high - low, 1e-6) * 0.02
    dimensions.append(
        {
            "label": "cosine",
            "values": scores,
            "range": [low - edge, high + edge],
            "tickformat": ".4f",
        }
    )
    line = {"color": scores, "colorscale": SCALE, "cmin": low - edge, "cmax": high + edge}
    chart.add_parcoords(
        dimensions=dimensions, line=line, labelside="top", unselected_line_opacity=0.05
    )
    return chart


def _dimension(name: str, values: Sequence[Any]) -> Mapping[str, Any]:
    """An axis: by distance for numbers of one order, else by level, evenly."""
    numbers = all(map(is_number, values))
    values = list(values) if numbers else [level(value) for value in values]
    levels = sorted(set(values))
    positive = [value for value in levels if numbers and value > 0] or [1]
    if numbers and max(positive) <= WIDE_RANGE * min(positive):
        ticks = {"tickvals": levels} if len(levels) <= TICKS else {}
        return {"label": name, "values": values, **ticks}
    shown = range(0, len(levels), math.ceil(len(levels) / TICKS))
    return {
        "label": name,
        "values": [levels.index(value) for value in values],
        "tickvals": list(shown),
        "ticktext": [level(levels[number]) for number in shown],
    }


def _wrapped(row: TrialRow, names: Iterable[str]) -> list[str]:
    """What sets a setting apart, in lines that fit beside a chart on a phone."""
    # Not broken between a name and its value.
    parts = [f"{name}\N{NO-BREAK SPACE}{level(row['setting'].get(name))}" for name in names]
    lines = textwrap.wrap(", ".join(parts), 30, break_long_words=False)
    return [escape(line) for line in lines] or [escape(row["name"])]


def leaders(rows: Sequence[TrialRow], epochs: int) -> go.Figure:
    """Every seed of the best settings at `epochs`, the winner above."""
    groups = by_setting(rows, epochs)
    best = key(rows[0])
    order = sorted(groups, key=lambda name: (name != best, -mean_score(groups[name], epochs)))
    shown = [groups[name] for name in order[:LEADERS]]
    names = ["<br>".join(_wrapped(group[0], varying(rows))) for group in shown]
    lines = max(name.count("<br>") + 1 for name in names)
    height = 120 + (14 + 15 * lines) * len(shown)
    chart = figure("", "", height=height, **below("validation cosine"))
    places = [(number, row) for number, group in enumerate(shown) for row in group]
    chart.add_scatter(
        x=[score_at(row, epochs) for _, row in places],
        y=[number for number, _ in places],
        mode="markers",
        marker={"size": 8, "color": [FINISHED if n else BEST for n, _ in places], "opacity": 0.6},
        name="one seed",
        text=[describe(row) for _, row in places],
        hovertemplate="%{text}<br>cosine %{x:.4f}<extra></extra>",
    )
    repeated = [number for number, group in enumerate(shown) if len(group) > 1]
    chart.add_scatter(
        x=[mean_score(shown[number], epochs) for number in repeated],
        y=repeated,
        mode="markers",
        marker={"symbol": "line-ns-open", "size": 18, "color": STOPPED, "line": {"width": 3}},
        name="mean of its seeds",
        hovertemplate="mean %{x:.4f}<extra></extra>",
    )
    chart.update_yaxes(tickvals=list(range(len(shown))), ticktext=names, autorange="reversed")
    chart.update_xaxes(nticks=5, tickangle=0)
    chart.update_layout(showlegend=bool(repeated))
    return chart
