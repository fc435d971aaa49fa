"""Rows of trials.json made comparable: scores after the same number of epochs.

A trial that was stopped early would have improved, so its last score is never compared with the
last score of a finished one. Every comparison names its number of epochs and leaves out the trials
that did not reach it. Scores on different shares of the training rows are not compared either.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

TrialRow = Mapping[str, Any]
"""A trial as `search.results.trial_row` writes it to trials.json: one setting with one seed."""

COMMON = 0.9
"""Least share of the trials that reached the epoch at which all are compared."""


class TooFew(ValueError):
    """Too few trials for a result; the message says how many there are and are needed."""


def curve(row: TrialRow) -> list[float]:
    """Return the best validation cosine so far after each epoch; NaN before a finite one."""
    if not row["epochs"]:
        return []
    return np.fmax.accumulate([float(epoch["val_cosine"]) for epoch in row["epochs"]]).tolist()


def first_share(rows: Sequence[TrialRow]) -> float:
    """Return the smallest share of the training rows that trials used: all began with it."""
    return min((run["share"] for row in rows for run in row["runs"]), default=1.0)


def at_share(rows: Sequence[TrialRow], share: float) -> list[TrialRow]:
    """Return the trials as they were on `share` of the training rows, if they reached it."""
    return [
        {**row, "share": share, "epochs": run["epochs"]}
        for row in rows
        for run in row["runs"]
        if run["share"] == share
    ]


def score_at(row: TrialRow, epochs: int) -> float:
    """Return the best cosine within the first `epochs` epochs; NaN for a shorter trial."""
    values = curve(row)
    return values[epochs - 1] if len(values) >= epochs else math.nan


def scored(rows: Sequence[TrialRow]) -> list[TrialRow]:
    """Return the rows with a score, in their order."""
    return [row for row in rows if row["epochs"] and not math.isnan(curve(row)[-1])]


def common_epochs(rows: Sequence[TrialRow], share: float = COMMON) -> int:
    """Return the most epochs that at least `share` of the scored trials have.

    The few trials that were trained further were chosen for being good, so results from them alone
    are biased by that choice.

    Raises:
        TooFew: no trial has a score.
    """
    lengths = sorted(len(row["epochs"]) for row in scored(rows))
    if not lengths:
        raise TooFew("No trial has a score.")
    return lengths[math.floor(len(lengths) * (1 - share) + 1e-9)]


def key(row: TrialRow, without: Sequence[str] = ()) -> str:
    """Return the setting as text, which is equal for all seeds of one setting."""
    return json.dumps(
        {k: v for k, v in row["setting"].items() if k not in without}, sort_keys=True, default=str
    )


def by_setting(
    rows: Sequence[TrialRow], epochs: int, without: Sequence[str] = ()
) -> dict[str, list[TrialRow]]:
    """Return rows with a score at `epochs`, grouped by setting, in the order of the rows."""
    groups: dict[str, list[TrialRow]] = {}
    for row in rows:
        if not math.isnan(score_at(row, epochs)):
            groups.setdefault(key(row, without), []).append(row)
    return groups


def mean_score(rows: Sequence[TrialRow], epochs: int) -> float:
    """Return the mean of the rows' scores at `epochs`."""
    return float(np.mean([score_at(row, epochs) for row in rows]))


def seed_deviation(rows: Sequence[TrialRow], epochs: int) -> tuple[float, int]:
    """Return the pooled standard deviation of seeds, and its degrees of freedom (0: unknown)."""
    groups = by_setting(rows, epochs).values()
    scores = [[score_at(row, epochs) for row in group] for group in groups]
    freedom = sum(len(group) - 1 for group in scores)
    if not freedom:
        return math.nan, 0
    squares = sum(float(np.var(group)) * len(group) for group in scores)
    return math.sqrt(squares / freedom), freedom


def flop_spent(row: TrialRow) -> float:
    """Return the FLOP of a trial: per picture, forward and backward, times picture passes."""
    return float(row["flop"]) * float(row["rows"])


def lora_share(row: TrialRow) -> float:
    """Return the share of LoRA among the layers that learn.

    0 is all unfrozen, 1 is all LoRA, NaN is a plan in which no layer learns.
    """
    lora, trained = len(row["plan"]["lora"]), len(row["plan"]["trained"])
    return lora / (lora + trained) if lora + trained else math.nan


def pareto(cost: Sequence[float], score: Sequence[float]) -> list[int]:
    """Return the indices of the Pareto front of low cost and high score, the cheapest first."""
    front, best = [], -math.inf
    for index in sorted(range(len(cost)), key=lambda i: (cost[i], -score[i])):
        if score[index] > best:
            front.append(index)
            best = score[index]
    return front


def rank_agreement(rows: Sequence[TrialRow], epochs: int) -> tuple[float, int] | None:
    """Return Spearman's correlation of scores at `epochs` with the last, and the number of trials.

    Over finished trials; `epochs` counts those on the first share of the rows. None: fewer than 5
    trials, `epochs` is the end, or all scores are equal.
    """
    done = [row for row in scored(rows) if row["end"] == "finished"]
    early = at_share(done, first_share(rows))
    if len(done) < 5 or len(early) < len(done):
        return None
    pairs = [[score_at(row, epochs) for row in early], [curve(row)[-1] for row in done]]
    if pairs[0] == pairs[1] or any(np.ptp(values) == 0 for values in pairs):
        return None
    return float(stats.spearmanr(*pairs).statistic), len(done)
