"""Search report as one HTML page: the winner and its certainty, the effect of settings, all trials.

The text is in `report/templates/search`, one file per section; this module gives it the results and
the charts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from img2prompt.report.html import render_page
from img2prompt.report.search import charts, effect_charts
from img2prompt.report.search.analysis import Analysis, analyse
from img2prompt.report.search.trial_rows import (
    TooFew,
    TrialRow,
    flop_spent,
    lora_share,
    rank_agreement,
    scored,
)
from img2prompt.report.search.trial_table import table
from img2prompt.report.search.wording import FILTERS, si

if TYPE_CHECKING:
    import plotly.graph_objects as go


def page(rows: Sequence[TrialRow]) -> str:
    """Return the page of a search's rows (those of trials.json, the best first).

    Raises:
        TooFew: no trial has a score.
    """
    analysis = analyse(rows)
    results = {name: getattr(analysis, name) for name in ("importance", "equal_cost", "widths")}
    reasons = {name: str(result) for name, result in results.items() if isinstance(result, TooFew)}
    far = [row for row in scored(analysis.compared) if len(row["epochs"]) >= analysis.epochs]
    return render_page(
        "search/page.html",
        figures=dict(_figures(analysis)),
        filters=FILTERS,
        **results,
        few=reasons,
        rows=rows,
        best=analysis.best,
        shares=analysis.shares,
        epochs=analysis.epochs,
        compared=analysis.compared,
        reached=(len(far), len(scored(analysis.compared))),
        agreement=rank_agreement(rows, analysis.epochs),
        facts=_facts(rows),
        table=table(rows),
    )


def _figures(analysis: Analysis) -> Iterator[tuple[str, go.Figure]]:
    """Yield the charts that there are enough trials for, by their names in the templates."""
    compared, epochs = analysis.compared, analysis.epochs
    yield "curves", charts.curves(analysis.rows)
    if len(scored(compared)) > 1:
        yield "leaders", charts.leaders(analysis.last, analysis.best.epochs)
        yield "spent", charts.spent(analysis.rows)
        yield "parallel", charts.parallel(compared, epochs)
        if any(not math.isnan(lora_share(row)) for row in scored(compared)):
            yield "plans", effect_charts.plans(compared, epochs)
            yield "cost", effect_charts.cost(compared, epochs)
    if not isinstance(analysis.importance, TooFew):
        yield "importance", effect_charts.importance(analysis.importance)
    if not isinstance(analysis.equal_cost, TooFew):
        yield "bands", effect_charts.bands(analysis.equal_cost.first, analysis.equal_cost.later)
    if not isinstance(analysis.widths, TooFew):
        yield "widths", effect_charts.widths(analysis.widths.first, analysis.widths.later)


def _facts(rows: Sequence[TrialRow]) -> dict[str, str]:
    """Return the size and cost of the search: tiles of the page, by their labels."""
    ends = [row["end"] for row in rows]
    kinds = ("finished", "stopped", "failed")
    passes, full = sum(row["rows"] for row in rows), _full_passes(rows)
    facts = {
        " / ".join(kinds): " / ".join(str(ends.count(kind)) for kind in kinds),
        "picture passes": f"{passes:,}",
        "of training all to the end": f"{100 * passes / full:.0f}\N{NO-BREAK SPACE}%"
        if full
        else "",
        "FLOP": si(sum(map(flop_spent, rows))),
        "worker hours": f"{sum(row['seconds'] for row in rows) / 3600:,.2f}",
    }
    return {name: value for name, value in facts.items() if value}


def _full_passes(rows: Sequence[TrialRow]) -> float:
    """Return the picture passes of a search that trains every trial as far as the furthest."""
    alive = [row for row in scored(rows) if row["end"] != "failed"]
    # Passes on shares of the rows, in epochs of all rows.
    done = [sum(run["share"] * len(run["epochs"]) for run in row["runs"]) for row in alive]
    epoch = max(
        (row["rows"] / passes for row, passes in zip(alive, done, strict=True)), default=0.0
    )
    furthest = max((row["share"] * len(row["epochs"]) for row in alive), default=0.0)
    return epoch * furthest * len(alive)
