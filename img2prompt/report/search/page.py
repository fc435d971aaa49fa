"""A search as one HTML page: what won, how sure that is, what each setting gives, every trial.

The page is a single file of 5 MB that asks the network for nothing (plotly.js is in it, and a
content security policy forbids all else), so it can be kept, mailed or opened from a bucket.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from string import Template
from typing import Any, TypeVar

from img2prompt.report.search import charts, effect_charts, findings, methods
from img2prompt.report.search.comparisons import equal_cost, width_effect
from img2prompt.report.search.effects import Importance, importance
from img2prompt.report.search.trial_rows import (
    TooFew,
    TrialRow,
    at_share,
    common_epochs,
    first_share,
    lora_share,
    scored,
)
from img2prompt.report.search.trial_table import table
from img2prompt.report.search.winner import Winner, winner

_Found = TypeVar("_Found")
AXIS = 130
"""Pixels that an axis of the parallel coordinates needs."""


def page(rows: Sequence[TrialRow]) -> str:
    """The page of a search's rows (those of trials.json, the best first).

    Raises:
        TooFew: no trial has a score.
    """
    from plotly.offline import get_plotlyjs

    shares = first_share(rows), rows[0]["share"] if rows else 1.0
    compared = at_share(rows, shares[0])
    written = _Page(rows, compared, at_share(rows, shares[1]), common_epochs(compared))
    best = written.all_sections()
    text = resources.files("img2prompt.report.search").joinpath("page.html").read_text("utf-8")
    figures = ",".join(f"{json.dumps(name)}:{value}" for name, value in written.figures.items())
    return Template(text).substitute(
        title=f"Search of {len(rows)} trial{'s' * (len(rows) != 1)}",
        head=findings.headline(best) + findings.facts(rows) + findings.compared(*shares),
        sections="\n".join(written.parts),
        figures="{" + figures.replace("</", "<\\/") + "}",
        plotly=get_plotlyjs(),
    )


@dataclass
class _Page:
    """Sections and figures, in the order in which they are written."""

    every: Sequence[TrialRow]
    rows: Sequence[TrialRow]
    """On the share of the training rows that all had."""
    last: Sequence[TrialRow]
    """On the winner's share."""
    epochs: int
    """After which all trials are compared."""
    parts: list[str] = field(default_factory=list)
    figures: dict[str, str] = field(default_factory=dict)

    def all_sections(self) -> Winner:
        several = len(scored(self.rows)) > 1
        matters = self.importance()
        surface = (matters.residual, matters.freedom) if isinstance(matters, Importance) else None
        best = winner(self.last, surface)
        if several:
            self.winner(best)
            self.compute()
        self.curves()
        if several:
            self.settings()
        self.section("What matters: importance of each parameter and pair", self.matters(matters))
        if several and any(not math.isnan(lora_share(row)) for row in scored(self.rows)):
            self.layers()
        self.section("LoRA against unfreezing at equal cost", self.lora())
        self.section("Head width", self.widths())
        self.section("All trials", [methods.TABLE, table(self.every)])
        return best

    def section(self, title: str, parts: Iterable[str]) -> None:
        """A section, or the plain word that there are too few trials for it."""
        try:
            text = "".join(parts)
        except TooFew as reason:
            text = f'<p class="few">Too few trials to tell: {escape(str(reason))}</p>'
        self.parts.append(f"<section><h2>{title}</h2>{text}</section>")

    def chart(self, name: str, figure: Any, wide: int = 0) -> str:
        """A place for a figure; narrower screens than `wide` pixels scroll it."""
        self.figures[name] = figure.to_json()
        inner = (
            f'<div id="{name}" style="height:{figure.layout.height}px;min-width:{wide}px"></div>'
        )
        return f'<div class="scroll">{inner}</div>' if wide else inner

    def importance(self) -> Importance | TooFew:
        try:
            return importance(self.rows, self.epochs)
        except TooFew as reason:
            return reason

    def at_the_end(self, compare: Callable[[Sequence[TrialRow], int], _Found]) -> _Found | None:
        """A comparison of the trials that went furthest, where that is further and enough."""
        longest = max(len(row["epochs"]) for row in self.last)
        if longest == self.epochs and self.last == self.rows:
            return None
        try:
            return compare(self.last, longest)
        except TooFew:
            return None

    def winner(self, best: Winner) -> None:
        chart = self.chart("leaders", charts.leaders(self.last, best.epochs))
        parts = [findings.leaders(best), chart, methods.WINNER]
        self.section("The winner, and how sure we are of it", parts)

    def compute(self) -> None:
        chart = self.chart("spent", charts.spent(self.every))
        self.section("Score against compute", [methods.SPENT, chart])

    def curves(self) -> None:
        chart = self.chart("curves", charts.curves(self.every))
        self.section("Learning curves", [findings.curves(self.every, self.epochs), chart])

    def settings(self) -> None:
        wide = AXIS * (1 + len(scored(self.rows)[0]["setting"]))
        chart = self.chart("parallel", charts.parallel(self.rows, self.epochs), wide)
        self.section("All settings", [findings.parallel(self.rows, self.epochs), chart])

    def layers(self) -> None:
        plans = self.chart("plans", effect_charts.plans(self.rows, self.epochs))
        cost = self.chart("cost", effect_charts.cost(self.rows, self.epochs))
        both = f'<div class="pair">{plans}{cost}</div>'
        self.section("LoRA and unfreezing", [findings.plans(self.epochs), both])

    def matters(self, found: Importance | TooFew) -> Iterator[str]:
        if isinstance(found, TooFew):
            raise found
        yield findings.importance(found)
        yield self.chart("importance", effect_charts.importance(found))
        yield methods.IMPORTANCE

    def lora(self) -> Iterator[str]:
        found, later = equal_cost(self.rows, self.epochs), self.at_the_end(equal_cost)
        yield findings.equal_cost(found, later)
        yield self.chart("bands", effect_charts.bands(found, later))
        yield methods.EQUAL_COST

    def widths(self) -> Iterator[str]:
        found, later = width_effect(self.rows, self.epochs), self.at_the_end(width_effect)
        yield findings.widths(found, later)
        yield self.chart("widths", effect_charts.widths(found, later))
        yield methods.WIDTHS
