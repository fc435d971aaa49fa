"""What a search leaves: a row for each trial, and their order."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from img2prompt.artifact import Artifact
from img2prompt.search.budget import LIMIT
from img2prompt.search.prices import Price
from img2prompt.search.space import Setting
from img2prompt.search.trials import TrialJob, TrialOutcome, seconds
from img2prompt.storage import read_bytes

BEST = "best.json"
TRIALS = "trials.json"
REPORT = "report.html"
SPACE = "space.json"


def row_of(
    setting: Setting,
    runs: Sequence[tuple[TrialJob, TrialOutcome, Price]],
    whole: float,
    failure: str,
    left: str,
) -> dict[str, Any]:
    """What trials.json says of a trial.

    `runs` are those of the trial, on rising shares of the training rows; the last is what it came
    to, and finished if that is `whole`. `failure`: why that failed, if it did; `left`: why it did
    not go on to all rows.

    `flop` is that of a row, forward and backward, `memory` in bytes of a worker. `rows` counts the
    pictures that were passed through the model in training, `seconds` those of all workers in their
    loops, both over all `runs`. `best` is the best validation cosine of `epochs`, and null for a
    trial that failed. `runs` has the epochs on each share.
    """
    job, outcome, price = runs[-1]
    is_whole = job.config.optim.share == whole
    end = "finished" if outcome.end == "finished" and is_whole else "stopped"
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
        "seconds": sum(seconds(each) for each, _, _ in runs),
        "end": "failed" if failure else end,
        "reason": failure or ("" if end == "finished" else outcome.reason or left or LIMIT),
        "best": None if failure else outcome.best,
        "epochs": outcome.epochs,
        "runs": [
            {"share": each.config.optim.share, "epochs": ended.epochs} for each, ended, _ in runs
        ],
    }


def ranked(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The best first.

    A score on more rows counts more than one on fewer, and of the repeated settings, whose mean
    counts, the best goes before all others: one good seed is no proof. The failed are last.
    """
    alike: dict[str, list[float]] = {}
    for row in rows:
        if row["best"] is not None:
            alike.setdefault(json.dumps(row["setting"]), []).append(row["best"])

    def key(row: dict[str, Any]) -> tuple[float, ...]:
        if row["best"] is None:
            return (np.inf,)
        scores = alike[json.dumps(row["setting"])]
        return (-row["share"], -len(scores), -float(np.mean(scores)), -row["best"])

    return sorted(rows, key=key)


def summary(search: Artifact) -> list[list[object]]:
    """Rows for a table: every trial, the best first."""
    return [
        [
            row["name"],
            "" if row["best"] is None else row["best"],
            len(row["epochs"]),
            f"{row['end']}: {row['reason']}" if row["reason"] else row["end"],
        ]
        for row in json.loads(read_bytes(search.path(TRIALS)))
    ]
