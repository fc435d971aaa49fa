"""What the report has found, in plain sentences."""

import math
from collections.abc import Sequence
from html import escape

import numpy as np

from img2prompt.report.search.charts import level, si
from img2prompt.report.search.comparisons import EqualCost, WidthEffect
from img2prompt.report.search.effect_charts import term_name, width_name
from img2prompt.report.search.effects import Estimate, Importance
from img2prompt.report.search.trial_rows import (
    TrialRow,
    first_share,
    flop_spent,
    rank_agreement,
    scored,
)
from img2prompt.report.search.winner import Winner

SURE, LIKELY = 0.95, 0.8


def headline(best: Winner) -> str:
    """What won, with what score, and how sure that is."""
    scores = best.scores
    many = len(scores) > 1
    spread = f", mean of {len(scores)} seeds ({_range(scores)})" if many else ", one seed"
    return (
        f"<p>Best setting: <strong>{_setting(best.row)}</strong>, validation cosine "
        f"<strong>{np.mean(scores):.4f}</strong>{spread}, after {_epochs(best.epochs)}.</p>"
        f"<p>{_sure(best)}</p>"
    )


def _sure(best: Winner) -> str:
    if best.runner_up is None:
        return "No other trial has a score to compare with, so how sure this is cannot be told."
    lead = float(np.mean(best.scores) - np.mean(best.runner_scores))
    runs = len(best.runner_scores)
    rival = f"the runner-up ({_setting(best.runner_up)}; {runs} seed{'s' * (runs != 1)})"
    if lead < 0:
        gap = f"On the mean of its runs it is {-lead:.4f} below "
    else:
        gap = f"It is {lead:.4f} above "
    if math.isnan(best.beats):
        why = "no setting was run with a second seed, and there are too few trials to guess from."
        return f"<strong>Not known how sure:</strong> {gap[0].lower()}{gap[1:]}{rival}, but {why}"
    word = "Sure" if best.beats >= SURE else "Likely" if best.beats >= LIKELY else "Open"
    return (
        f"<strong>{word}:</strong> {gap[0].lower()}{gap[1:]}{rival}, and better than it with "
        f"probability <strong>{_percent(best.beats)}</strong>; the best of all "
        f"{best.rivals + 1} settings compared with probability {_percent(best.first)}."
    )


def leaders(best: Winner) -> str:
    """What the chart of leaders shows, and where the noise is from."""
    shown = f"<p>The best settings after {_epochs(best.epochs)}, one dot a seed. "
    if best.source == "seeds":
        noise = f"From seed to seed a score deviates by {best.noise:.4f}."
    elif best.source == "surface":
        noise = (
            f"No seed was repeated. In place of the seeds' spread stands the scores' deviation "
            f"about the surface below, {best.noise:.4f}; seeds alone would deviate less. Run the "
            "first two settings with two more seeds to know."
        )
    else:
        noise = "No seed was repeated, so the spread of scores by chance is unknown."
    if not math.isnan(best.optimism):
        noise += f" The highest of so many scores flatters by about {best.optimism:.4f}."
    return f"{shown}{noise}</p>"


def facts(rows: Sequence[TrialRow]) -> str:
    """What the search was, and what it cost."""
    ends = {
        end: sum(row["end"] == end for row in rows) for end in ("finished", "stopped", "failed")
    }
    passes = sum(row["rows"] for row in rows)
    found = {
        " / ".join(ends): " / ".join(map(str, ends.values())),
        "picture passes": f"{passes:,}",
        "share of training all to the end": f"{100 * passes / full:.0f} %"
        if (full := _full(rows))
        else "",
        "FLOP": si(sum(map(flop_spent, rows))),
        "worker hours": f"{sum(row['seconds'] for row in rows) / 3600:,.2f}",
    }
    tiles = "".join(f"<div><dt>{k}</dt><dd>{v}</dd></div>" for k, v in found.items() if v)
    return f'<dl class="facts">{tiles}</dl>'


def _full(rows: Sequence[TrialRow]) -> float:
    """Picture passes if every trial that did not fail had been trained as far as the furthest."""
    alive = [row for row in scored(rows) if row["end"] != "failed"]
    # Passes on shares of the rows, in epochs of all rows.
    done = [sum(run["share"] * len(run["epochs"]) for run in row["runs"]) for row in alive]
    epoch = max((row["rows"] / each for row, each in zip(alive, done, strict=True)), default=0.0)
    furthest = max((row["share"] * len(row["epochs"]) for row in alive), default=0.0)
    return epoch * furthest * len(alive)


def compared(first: float, last: float) -> str:
    """On which shares of the training rows trials are compared, where not all have had all."""
    if first == last:
        return ""
    small, large = (f"{100 * share:g}&nbsp;%" for share in (first, last))
    return (
        f"<p>Trials began on {small} of the training rows, the best went on to {large}. The "
        f"winner, and what is said of trials that were kept on, is told from {large}; all other "
        f"comparisons are on the {small} that all had.</p>"
    )


def curves(rows: Sequence[TrialRow], epochs: int) -> str:
    agreement = rank_agreement(rows, epochs)
    text = "Each line is a trial; grey ones were stopped early."
    if agreement is not None:
        value, trials = agreement
        text += (
            f" Among the {trials} trials that finished, their order after {_epochs(epochs)}"
            f"{_part(first_share(rows))} agrees with their order at the end by a rank correlation "
            f"of {value:.2f} (Spearman; 1 is the same order). Those that were stopped for "
            "being low are not among them, which mostly makes it smaller than over all trials."
        )
    return f"<p>{text}</p>"


def _part(share: float) -> str:
    return "" if share == 1 else f" on {100 * share:g}&nbsp;% of the training rows"


def parallel(rows: Sequence[TrialRow], epochs: int) -> str:
    return (
        f"<p>A line is a trial, coloured by its score after {_epochs(epochs)}. Drag along an axis "
        "to keep the trials in that range, click on the axis to let go; drag a name to move the "
        f"axis. {_compared(rows, epochs)}</p>"
    )


def _compared(rows: Sequence[TrialRow], epochs: int) -> str:
    every = scored(rows)
    far = sum(len(row["epochs"]) >= epochs for row in every)
    return (
        f"Trials are compared after {_epochs(epochs)}, which {far} of the {len(every)} with a "
        "score have reached: a stopped trial is never held against a longer one."
    )


def importance(found: Importance) -> str:
    lead = found.terms[0]
    clear = [term for term in found.terms if term.share.low > 0]
    names = ", ".join(f"{_term(t.names)} {_percent(t.share.value)}" for t in clear[:4])
    text = (
        f"Clearly at work: <strong>{names}</strong>."
        if clear
        else (
            "No parameter's effect is clear of chance; the largest share is that of "
            f"{_term(lead.names)}."
        )
    )
    seeds = "" if math.isnan(found.seeds) else f"; seeds alone make {_percent(found.seeds)}"
    return (
        f"<p>{text} {_percent(found.unexplained)} of the differences is left unexplained{seeds}. "
        f"From {found.settings} settings after {_epochs(found.epochs)}; fitted: {found.model}.</p>"
    )


def plans(epochs: int) -> str:
    return (
        f"<p>Scores after {_epochs(epochs)}: by layers, as means over all else; and against cost, "
        "a dot for each setting. Dots above one another cost the same, and their colour tells how "
        "much of what learns is LoRA.</p>"
    )


def equal_cost(found: EqualCost, later: EqualCost | None) -> str:
    band = found.all
    verdict = _verdict(band.difference, "LoRA is better", "unfreezing is better")
    return (
        f"<p>At equal cost, all LoRA in place of all unfrozen gives "
        f"<strong>{_signed(band.difference)}</strong>: {verdict}. From {band.pairs} pairs of "
        f"{band.settings} settings after {_epochs(found.epochs)}."
        + (f" {_kept(later.epochs)}: {_signed(later.all.difference)}." if later else "")
        + "</p>"
    )


def _kept(epochs: int) -> str:
    return (
        f"After {_epochs(epochs)}, among the trials that were kept on for scoring well (which "
        "hides a part of any difference)"
    )


def widths(found: WidthEffect, later: WidthEffect | None) -> str:
    head = width_name(found.narrowest)
    text = f"Against the {head} head, after {_epochs(found.epochs)}: {_widths(found)}."
    if later:
        text += f" {_kept(later.epochs)}: {_widths(later)}."
    return f"<p>{text}</p>"


def _widths(found: WidthEffect) -> str:
    return "; ".join(
        f"{width_name(w.width)} <strong>{_signed(w.difference)}</strong> in {w.settings} settings, "
        + _verdict(w.difference, "better", "worse")
        for w in found.widths
    )


def _verdict(difference: Estimate, above: str, below: str) -> str:
    if difference.low > 0:
        return above
    return below if difference.high < 0 else "no difference that is clear of chance"


def _signed(e: Estimate) -> str:
    return f"{e.value:+.4f} ({e.low:+.4f} to {e.high:+.4f})"


def _range(scores: Sequence[float]) -> str:
    return f"{min(scores):.4f} to {max(scores):.4f}"


def _percent(share: float) -> str:
    """Whole percents; never certain."""
    if share > 0.995:
        return "over 99&nbsp;%"
    return "under 1&nbsp;%" if 0 <= share < 0.005 else f"{100 * share:.0f}&nbsp;%"


def _epochs(count: int) -> str:
    return f"{count} epoch" if count == 1 else f"{count} epochs"


def _term(names: Sequence[str]) -> str:
    return escape(term_name(names))


def _setting(row: TrialRow) -> str:
    return escape(", ".join(f"{k} {level(v)}" for k, v in row["setting"].items()))
