"""Evaluation report as one HTML page: the best system, all scores with intervals, two charts.

The text is in `report/templates/evaluation.html`; this module gives it the results and the charts.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from img2prompt.report.chart_style import SERIES, below, error_bars, figure, plain
from img2prompt.report.html import render_page
from img2prompt.report.wording import percent, plural

if TYPE_CHECKING:
    import plotly.graph_objects as go

QUANTILES = 201
"""Points of a curve in the chart of distributions."""
FEW_GROUPS = 5
"""Below this number of prompt groups, tables say that an interval rests on few prompts."""
LABEL_WIDTH = 16
"""Characters of a line of a label, so that it fits beside a chart on a phone."""


@dataclass(frozen=True)
class Results:
    """Scores of the systems of an evaluation, as its stage computes them.

    A score is a mapping with the keys `mean`, `low` and `high` (95 % interval), `rows` and
    `groups`.
    """

    split: str
    """Scored pictures: a split's, or "cross-validated" ones."""
    groups: int
    """Prompt groups that the pictures belong to."""
    baseline: str
    """System that the others are compared with."""
    systems: Mapping[str, Mapping[str, Any]]
    """By name: the score over `all` pictures, and scores `by_source`."""
    leads: Mapping[str, Mapping[str, Any]]
    """How far the best system is above each other one, over all pictures."""
    cosines: Mapping[str, np.ndarray]
    """Each picture's cosine (N,), by system."""
    folds: int = 0
    """Folds of a cross-validation; 0: none."""


@dataclass(frozen=True)
class ScoreRow:
    """A row of the table of systems: a system's score over all pictures or one source."""

    system: str
    source: str | None
    """Source of the pictures; None for all pictures."""
    score: Mapping[str, Any]
    gain: float
    """Mean cosine minus that of the baseline, over the same pictures."""
    lead: Mapping[str, Any] | None
    """How far the best system is above this one; None for the best, and for a single source."""


def ranking(systems: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the names of the systems, the highest mean cosine over all pictures first."""
    return sorted(systems, key=lambda name: -systems[name]["all"]["mean"])


def page(results: Results) -> str:
    """Return the page of an evaluation of two systems or more."""
    best, runner_up, *_ = ranking(results.systems)
    rows = _rows(results)
    better = results.cosines[best] > results.cosines[results.baseline]
    return render_page(
        "evaluation.html",
        figures={"scores": _scores_chart(rows), "distributions": _distributions_chart(results)},
        filters={"plural": plural, "percent": percent},
        results=results,
        few=FEW_GROUPS,
        best=best,
        runner_up=runner_up,
        score=results.systems[best]["all"],
        sources=list(results.systems[best]["by_source"]),
        better=float(np.mean(better)),
        rows=rows,
    )


def _rows(results: Results) -> list[ScoreRow]:
    """Return all scores, the best system first; sources only where there are several."""
    baseline = _by_pictures(results.systems[results.baseline])
    return [
        ScoreRow(
            system=name,
            source=source,
            score=score,
            gain=score["mean"] - baseline[source]["mean"],
            lead=results.leads.get(name) if source is None else None,
        )
        for name in ranking(results.systems)
        for source, score in _by_pictures(results.systems[name]).items()
    ]


def _by_pictures(system: Mapping[str, Any]) -> dict[str | None, Mapping[str, Any]]:
    """Return a system's scores by source, with None for all pictures."""
    by_source = system["by_source"]
    return {None: system["all"], **(by_source if len(by_source) > 1 else {})}


def _scores_chart(rows: Sequence[ScoreRow]) -> go.Figure:
    """Return the chart of mean cosines with their intervals, one block of rows per source."""
    systems = list(dict.fromkeys(row.system for row in rows))
    sources = list(dict.fromkeys(row.source for row in rows))
    block = len(systems) + 1  # an empty line between blocks
    height = 110 + (34 if len(sources) == 1 else 22) * block * len(sources)
    chart = figure("", "", height=height, **below("mean cosine"))
    for number, system in enumerate(systems):
        own = [row for row in rows if row.system == system]
        means, lows, highs = ([row.score[key] for row in own] for key in ("mean", "low", "high"))
        color = SERIES[number % len(SERIES)]
        chart.add_scatter(
            x=means,
            y=[block * sources.index(row.source) + number for row in own],
            mode="markers",
            name=_label(system),
            marker={"size": 10, "color": color},
            error_x=error_bars(means, lows, highs, color),
            text=[f"<b>{_label(system)}</b><br>{_label(_pictures(row.source))}" for row in own],
            customdata=list(zip(lows, highs, strict=True)),
            hovertemplate="%{text}<br>mean cosine %{x:.4f} "
            "(%{customdata[0]:.4f} to %{customdata[1]:.4f})<extra></extra>",
        )
    if len(sources) == 1:
        ticks = dict(enumerate(systems))
    else:
        middle = (len(systems) - 1) / 2
        ticks = {block * n + middle: _pictures(source) for n, source in enumerate(sources)}
    chart.update_yaxes(tickvals=list(ticks), ticktext=list(map(_label, ticks.values())))
    chart.update_yaxes(autorange="reversed", showgrid=False)
    chart.update_xaxes(nticks=5, tickangle=0)
    several = len(sources) > 1
    chart.update_layout(showlegend=several, margin_t=36 if several else 12)
    return chart


def _distributions_chart(results: Results) -> go.Figure:
    """Return the chart of the share of pictures below each cosine, one curve per system."""
    chart = figure("cosine of a picture", "pictures below it, %")
    shares = np.linspace(0, 1, QUANTILES)
    for number, system in enumerate(ranking(results.systems)):
        chart.add_scatter(
            x=np.quantile(results.cosines[system], shares).tolist(),
            y=(100 * shares).tolist(),
            mode="lines",
            name=_label(system),
            line={"color": SERIES[number % len(SERIES)], "width": 2},
            text=[f"<b>{_label(system)}</b>"] * QUANTILES,
            hovertemplate="%{text}<br>%{y:.1f}\N{NO-BREAK SPACE}% of pictures are below %{x:.4f}"
            "<extra></extra>",
        )
    chart.update_xaxes(nticks=5, tickangle=0)
    return chart


def _pictures(source: str | None) -> str:
    return "all pictures" if source is None else source


def _label(name: str) -> str:
    """Return a name in short lines, as text that Plotly shows as it is."""
    return "<br>".join(map(plain, textwrap.wrap(name, LABEL_WIDTH)))
