"""Charts of the effect of settings: importance, LoRA against unfreezing, head width."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from img2prompt.report.chart_style import BEST, below, error_bars, figure, plain
from img2prompt.report.search.comparisons import Band, EqualCost, WidthEffect
from img2prompt.report.search.effects import Estimate, Importance
from img2prompt.report.search.trial_rows import TrialRow, by_setting, lora_share, mean_score
from img2prompt.report.search.trial_style import FINISHED, SCALE, STOPPED, describe
from img2prompt.report.search.wording import term_name, width_name

if TYPE_CHECKING:
    import plotly.graph_objects as go

SHOWN = 15
"""Most terms in the chart of importance."""


def intervals(
    names: Sequence[str], estimates: Sequence[Estimate], axis: str, digits: str, color: str
) -> go.Figure:
    """Return a chart of dots with their 95 % intervals, the first on top, and a line at 0."""
    chart = figure("", "", height=100 + 34 * len(names), showlegend=False, **below(axis))
    chart.update_layout(margin_t=12)
    chart.update_xaxes(nticks=5, tickangle=0)
    chart.add_scatter(
        x=[e.value for e in estimates],
        y=list(names),
        mode="markers",
        marker={"size": 10, "color": color},
        error_x=error_bars(
            [e.value for e in estimates],
            [e.low for e in estimates],
            [e.high for e in estimates],
            color,
        ),
        customdata=[[e.low, e.high] for e in estimates],
        hovertemplate=f"%{{y}}: %{{x:{digits}}} (%{{customdata[0]:{digits}}} to "
        f"%{{customdata[1]:{digits}}})<extra></extra>",
    )
    chart.add_vline(x=0, line={"color": STOPPED, "width": 1, "dash": "dash"})
    chart.update_yaxes(autorange="reversed", type="category")
    return chart


def importance(result: Importance) -> go.Figure:
    """Return the chart of the share of each parameter and pair, the largest on top."""
    terms = result.terms[:SHOWN]
    names = [plain(term_name(term.names)) for term in terms]
    shares = [Estimate(100 * t.share.value, 100 * t.share.low, 100 * t.share.high) for t in terms]
    return intervals(names, shares, "share of the variance of scores, %", ".1f", FINISHED)


def plans(rows: Sequence[TrialRow], epochs: int) -> go.Figure:
    """Return the chart of the mean score by number of LoRA layers and of trained layers."""
    groups: dict[tuple[int, int], list[TrialRow]] = {}
    for group in by_setting(rows, epochs).values():
        layers = group[0]["plan"]
        groups.setdefault((len(layers["trained"]), len(layers["lora"])), []).extend(group)
    chart = figure("trained layers", "layers with LoRA", height=460)
    most = max(1, *(count for counts in groups for count in counts))
    axis = {"tick0": 0, "dtick": math.ceil(most / 8), "range": [-0.07 * most, 1.07 * most]}
    chart.update_xaxes(axis)
    chart.update_yaxes(axis)
    means = [mean_score(group, epochs) for group in groups.values()]
    chart.add_scatter(
        x=[trained for trained, _ in groups],
        y=[lora for _, lora in groups],
        mode="markers",
        marker={
            "symbol": "square",
            "size": 20,
            "color": means,
            "colorscale": SCALE,
            "colorbar": {"title": {"text": "cosine"}, "thickness": 12, "tickformat": ".3f"},
        },
        customdata=[[m, len(g)] for m, g in zip(means, groups.values(), strict=True)],
        hovertemplate="%{y} layers with LoRA, %{x} trained<br>mean cosine %{customdata[0]:.4f} of "
        "%{customdata[1]} trials<extra></extra>",
    )
    return chart


def cost(rows: Sequence[TrialRow], epochs: int) -> go.Figure:
    """Return the chart of score against FLOP per picture, coloured by the share of LoRA."""
    groups = [g for g in by_setting(rows, epochs).values() if not math.isnan(lora_share(g[0]))]
    chart = figure("GFLOP per picture, forward and backward", "validation cosine", height=460)
    chart.add_scatter(
        x=[group[0]["flop"] / 1e9 for group in groups],
        y=[mean_score(group, epochs) for group in groups],
        mode="markers",
        marker={
            "size": 10,
            "color": [100 * lora_share(group[0]) for group in groups],
            "colorscale": [[0.0, "#3d6fd1"], [0.5, "#a267b5"], [1.0, BEST]],
            "cmin": 0,
            "cmax": 100,
            "colorbar": {
                "title": {"text": "LoRA"},
                "thickness": 12,
                "tickvals": [0, 50, 100],
                "ticktext": ["none", "half", "all"],
            },
        },
        text=[describe(group[0]) for group in groups],
        hovertemplate="%{text}<br>cosine %{y:.4f}<extra></extra>",
    )
    return chart


def bands(first: EqualCost, later: EqualCost | None) -> go.Figure:
    """Return the chart of LoRA against unfreezing by band of cost, and over all costs.

    The last dot is `later`, of the trials that were trained further.
    """
    shown = [*first.bands, first.all]
    names = [*(_span(band) for band in first.bands), "all costs"]
    if later:
        shown.append(later.all)
        names.append("all costs, trained further")
    axis = "cosine of all LoRA minus cosine of all unfrozen"
    return intervals(names, [band.difference for band in shown], axis, "+.4f", BEST)


def _span(band: Band) -> str:
    low, high = (f"{edge / 1e9:,.3g}" for edge in band.flop)
    return f"{low} GFLOP" if low == high else f"{low} to {high} GFLOP"


def widths(first: WidthEffect, later: WidthEffect | None) -> go.Figure:
    """Return the chart of each head width against the narrowest.

    The last dots are `later`, of the trials that were trained further.
    """
    names = [width_name(width.width) for width in first.widths]
    shown = [width.difference for width in first.widths]
    if later:
        names += [f"{width_name(width.width)}, trained further" for width in later.widths]
        shown += [width.difference for width in later.widths]
    axis = f"cosine minus that of the {width_name(first.narrowest)} head"
    return intervals(names, shown, axis, "+.4f", FINISHED)
