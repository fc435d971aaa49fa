"""What a search's rows (trials.json) say, made comparable: scores after equally many epochs.

A trial that was stopped early would have gone on to learn, so its last score is never held against
the last score of one that finished. Every comparison names its number of epochs, and leaves out
the trials that did not come so far. Nor are scores compared that come from different shares of the
training rows.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

TrialRow = Mapping[str, Any]
"""One run of one trial, as `search/rows.py` writes it."""

COMMON = 0.9
"""Trials that must have come as far as the epoch at which all are compared."""


class TooFew(ValueError):
    """Too few trials to tell; the message says what there is and what is needed."""


def curve(row: TrialRow) -> list[float]:
    """The best validation cosine so far, after each epoch; NaN before the first number."""
    if not row["epochs"]:
        return []
    return np.fmax.accumulate([float(epoch["val_cosine"]) for epoch in row["epochs"]]).tolist()


def first_share(rows: Sequence[TrialRow]) -> float:
    """The least share of the training rows that trials had: all began with it."""
    return min((run["share"] for row in rows for run in row["runs"]), default=1.0)


def at_share(rows: Sequence[TrialRow], share: float) -> list[TrialRow]:
    """The trials as they were on `share` of the training rows, without those that never had it."""
    return [
        {**row, "share": share, "epochs": run["epochs"]}
        for row in rows
        for run in row["runs"]
        if run["share"] == share
    ]


def score_at(row: TrialRow, epochs: int) -> float:
    """The best cosine within the first `epochs` epochs; NaN when the trial has no such epoch."""
    values = curve(row)
    return values[epochs - 1] if len(values) >= epochs else math.nan


def scored(rows: Sequence[TrialRow]) -> list[TrialRow]:
    """The rows with a score, in their order."""
    return [row for row in rows if row["epochs"] and not math.isnan(curve(row)[-1])]


def common_epochs(rows: Sequence[TrialRow], share: float = COMMON) -> int:
    """The most epochs that at least `share` of the scored trials have.

    Among the few that went further only good ones are left: what is measured on them alone is
    biased by the very choice that left them.

    Raises:
        TooFew: no trial has a score.
    """
    lengths = sorted(len(row["epochs"]) for row in scored(rows))
    if not lengths:
        raise TooFew("No trial has a score.")
    return lengths[math.floor(len(lengths) * (1 - share) + 1e-9)]


def key(row: TrialRow, without: Sequence[str] = ()) -> str:
    """The setting as text, equal for the seeds of one setting."""
    return json.dumps(
        {k: v for k, v in row["setting"].items() if k not in without}, sort_keys=True, default=str
    )


def by_setting(
    rows: Sequence[TrialRow], epochs: int, without: Sequence[str] = ()
) -> dict[str, list[TrialRow]]:
    """Rows that have a score at `epochs`, seeds of one setting together, in the rows' order."""
    groups: dict[str, list[TrialRow]] = {}
    for row in rows:
        if not math.isnan(score_at(row, epochs)):
            groups.setdefault(key(row, without), []).append(row)
    return groups


def mean_score(rows: Sequence[TrialRow], epochs: int) -> float:
    return float(np.mean([score_at(row, epochs) for row in rows]))


def seed_deviation(rows: Sequence[TrialRow], epochs: int) -> tuple[float, int]:
    """Pooled standard deviation of a setting's seeds, and its degrees of freedom (0: unknown)."""
    groups = by_setting(rows, epochs).values()
    scores = [[score_at(row, epochs) for row in group] for group in groups]
    freedom = sum(len(group) - 1 for group in scores)
    if not freedom:
        return math.nan, 0
    squares = sum(float(np.var(group)) * len(group) for group in scores)
    return math.sqrt(squares / freedom), freedom


def flop_spent(row: TrialRow) -> float:
    """FLOP that the trial has cost: of a picture, forward and backward, times picture passes."""
    return float(row["flop"]) * float(row["rows"])


def lora_share(row: TrialRow) -> float:
    """The part of the learning layers with LoRA: 0 all unfrozen, 1 all LoRA; NaN: none learns."""
    lora, trained = len(row["plan"]["lora"]), len(row["plan"]["trained"])
    return lora / (lora + trained) if lora + trained else math.nan


def pareto(cost: Sequence[float], score: Sequence[float]) -> list[int]:
    """Indices of what nothing else beats at no more cost, the cheapest first."""
    front, best = [], -math.inf
    for index in sorted(range(len(cost)), key=lambda i: (cost[i], -score[i])):
        if score[index] > best:
            front.append(index)
            best = score[index]
    return front


def rank_agreement(rows: Sequence[TrialRow], epochs: int) -> tuple[float, int] | None:
    """Spearman's correlation of scores at `epochs` with those at the end, over finished trials.

    `epochs` are those on the first share of the rows. With the number of trials; None: fewer than
    5, or nothing lies between.
    """
    done = [row for row in scored(rows) if row["end"] == "finished"]
    early = at_share(done, first_share(rows))
    if len(done) < 5 or len(early) < len(done):
        return None
    pairs = [[score_at(row, epochs) for row in early], [curve(row)[-1] for row in done]]
    if pairs[0] == pairs[1] or any(np.ptp(values) == 0 for values in pairs):
        return None
    return float(stats.spearmanr(*pairs).statistic), len(done)
