"""Charts of the trials of a search: score against compute, learning curves, settings, leaders.

`optuna.visualization` 5 is not used: its parallel coordinates cannot be brushed, its curves need
one trace per trial and do not mark stopped trials, and both need a study rebuilt from the rows.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from img2prompt.report.chart_style import BEST, below, figure, plain
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
from img2prompt.report.search.trial_style import FAILED, FINISHED, SCALE, STOPPED, describe
from img2prompt.report.search.wording import level, si

if TYPE_CHECKING:
    import plotly.graph_objects as go

LOOKS = {
    "finished": {"color": FINISHED, "symbol": "circle"},
    "stopped": {"color": STOPPED, "symbol": "circle-open"},
    "failed": {"color": FAILED, "symbol": "x"},
}
LEADERS = 10
"""Settings in the chart of leaders."""
TICKS = 10
"""Most ticks of an axis of the parallel coordinates."""
WIDE_RANGE = 20
"""Ratio of the largest to the smallest value above which an axis shows levels, not distances."""


def spent(rows: Sequence[TrialRow]) -> go.Figure:
    """Return the chart of each trial's best score against its FLOP, with the Pareto front."""
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
    """Return the ticks of a log axis: powers of ten in its range, and more where those are few."""
    low, high = min(values) / 1.1, max(values) * 1.1
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
    ticks: list[float] = []
    fine = [step / 5 for step in range(5, 50)]
    for steps in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), range(1, 10), fine):
        ticks = [step * 10.0**power for power in powers for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) > 2:
            break
    return ticks


def curves(rows: Sequence[TrialRow]) -> go.Figure:
    """Return the chart of validation cosine by epoch: one line per trial, the best on top."""
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
    """Return all trials as one trace with gaps between them: hundreds of traces are slow."""
    x, y, text = [], [], []
    for row in rows:
        x += [*(epoch["epoch"] for epoch in row["epochs"]), None]
        y += [*(epoch["val_cosine"] for epoch in row["epochs"]), None]
        text += [describe(row)] * (len(row["epochs"]) + 1)
    return {"x": x, "y": y, "text": text}


def parallel(rows: Sequence[TrialRow], epochs: int) -> go.Figure:
    """Return parallel coordinates: one line per trial through its settings to its score."""
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
    """Return an axis: to scale for numbers of a similar size, else with evenly spaced levels."""
    numbers = all(map(is_number, values))
    values = list(values) if numbers else [level(value) for value in values]
    levels = sorted(set(values))
    positive = [value for value in levels if numbers and value > 0] or [1]
    if numbers and max(positive) <= WIDE_RANGE * min(positive):
        ticks = {"tickvals": levels} if len(levels) <= TICKS else {}
        return {"label": plain(name), "values": values, **ticks}
    shown = range(0, len(levels), math.ceil(len(levels) / TICKS))
    return {
        "label": plain(name),
        "values": [levels.index(value) for value in values],
        "tickvals": list(shown),
        "ticktext": [level(levels[number]) for number in shown],  # Plotly reads no tags in these
    }


def _wrapped(row: TrialRow, names: Iterable[str]) -> list[str]:
    """Return the named values of a setting, in lines that fit beside a chart on a phone."""
    # No-break spaces keep a name and its value on one line.
    parts = [f"{name}\N{NO-BREAK SPACE}{level(row['setting'].get(name))}" for name in names]
    lines = textwrap.wrap(", ".join(parts), 30, break_long_words=False)
    return [plain(line) for line in lines] or [plain(row["name"])]


def leaders(rows: Sequence[TrialRow], epochs: int) -> go.Figure:
    """Return the chart of every seed of the best settings at `epochs`, the winner first."""
    groups = by_setting(rows, epochs)
    best = key(rows[0])
    order = sorted(groups, key=lambda name: (name != best, -mean_score(groups[name], epochs)))
    shown = [groups[name] for name in order[:LEADERS]]
    names = ["<br>".join(_wrapped(group[0], varying(rows))) for group in shown]
    lines = max(name.count("<br>") + 1 for name in names)
    height = 120 + (14 + 15 * lines) * len(shown)
    chart = figure("", "", height=height, **below("validation cosine"))
    dots = [(number, row) for number, group in enumerate(shown) for row in group]
    chart.add_scatter(
        x=[score_at(row, epochs) for _, row in dots],
        y=[number for number, _ in dots],
        mode="markers",
        marker={"size": 8, "color": [FINISHED if n else BEST for n, _ in dots], "opacity": 0.6},
        name="one seed",
        text=[describe(row) for _, row in dots],
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
