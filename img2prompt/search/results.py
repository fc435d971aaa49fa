"""Results of a search: the names of its files, a row for each trial, and their ranking."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from img2prompt.artifact import Artifact
from img2prompt.search.budget import LIMIT
from img2prompt.search.prices import Price
from img2prompt.search.space import Setting
from img2prompt.search.trials import TrialJob, TrialOutcome, worker_seconds_of
from img2prompt.storage import read_bytes

BEST = "best.json"
TRIALS = "trials.json"
REPORT = "report.html"
SPACE = "space.json"


def trial_row(
    setting: Setting,
    runs: Sequence[tuple[TrialJob, TrialOutcome, Price]],
    *,
    full_share: float,
    failure: str,
    dropped: str,
) -> dict[str, Any]:
    """Return the row of a trial in trials.json.

    Args:
        setting: The setting that it trained.
        runs: Its runs on rising shares of the training rows.
        full_share: `optim.share` of a run on all rows; the trial has finished if its last run has.
        failure: Why the last run failed; empty if it did not.
        dropped: Why no run on a larger share followed the last one; empty if nothing is known.

    In the row, `flop` is for one picture, forward and backward; `memory` is in bytes of a worker.
    `rows` counts the pictures that training passed through the model, `seconds` those of all
    workers in their loops, both over all `runs`. `best` is the best validation cosine of `epochs`,
    and null for a trial that failed. `runs` has the epochs on each share.
    """
    job, outcome, price = runs[-1]
    is_full = job.config.optim.share == full_share
    end = "finished" if outcome.end == "finished" and is_full else "stopped"
    return {
        "name": job.config.name,
        "setting": setting.to_dict(),
        "seed": job.config.seed,
        "plan": asdict(price.layers),
        "learned": price.learned,
        "flop": price.flop,
        "memory": price.memory,
        "share": job.config.optim.share,
        "rows": sum(len(ended.epochs) * cost.rows for _, ended, cost in runs),
        "seconds": sum(worker_seconds_of(run) for run, _, _ in runs),
        "end": "failed" if failure else end,
        "reason": failure or ("" if end == "finished" else outcome.reason or dropped or LIMIT),
        "best": None if failure else outcome.best,
        "epochs": outcome.epochs,
        "runs": [
            {"share": run.config.optim.share, "epochs": ended.epochs} for run, ended, _ in runs
        ],
    }


def ranked(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sort rows, the best first and failed trials last.

    Trials on more training rows come before trials on fewer. Among those, settings that were
    repeated with other seeds come first and are ordered by their mean score, because one seed may
    score well by chance.
    """
    scores_of: dict[str, list[float]] = {}
    for row in rows:
        if row["best"] is not None:
            scores_of.setdefault(json.dumps(row["setting"]), []).append(row["best"])

    def key(row: dict[str, Any]) -> tuple[float, ...]:
        if row["best"] is None:
            return (np.inf,)
        scores = scores_of[json.dumps(row["setting"])]
        return (-row["share"], -len(scores), -float(np.mean(scores)), -row["best"])

    return sorted(rows, key=key)


def summary(search: Artifact) -> list[list[object]]:
    """Return rows for a table on the terminal: every trial, the best first."""
    return [
        [
            row["name"],
            "" if row["best"] is None else row["best"],
            len(row["epochs"]),
            f"{row['end']}: {row['reason']}" if row["reason"] else row["end"],
        ]
        for row in json.loads(read_bytes(search.path(TRIALS)))
    ]
