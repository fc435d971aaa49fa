"""Tables of a search on the terminal: predicted costs before it starts, progress while it runs.

On a terminal the progress is redrawn in place; elsewhere each epoch is a line of the log.
"""

import functools
import logging
import sys
from collections.abc import Mapping
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from img2prompt.distributed import metrics
from img2prompt.search.budget import Budget
from img2prompt.search.propose import ListSearcher
from img2prompt.search.schedule import SearchScheduler
from img2prompt.search.trials import METRIC, TrialJob, TrialOutcome

logger = logging.getLogger(__name__)

ROWS = 20
"""Most trials of the live table: the running ones first, then the best."""
MAX_SETTINGS = 40
"""Most settings of the table before the start."""
STATES = ("running", "finished", "paused", "stopped", "failed")


def show_report(report: Mapping[str, Any]) -> None:
    """Print what each setting costs (`prices.report`) as a table on stderr."""
    table = Table(title="Settings and what each costs when trained to the end")
    for column in (
        "setting",
        "frozen / LoRA / trained",
        "learn",
        "GFLOP a row",
        "GB a worker",
        "device-hours",
    ):
        table.add_column(column, justify="left" if column in ("setting",) else "right")
    for row in report["settings"][:MAX_SETTINGS]:
        table.add_row(
            row["name"],
            " / ".join(map(str, row["layers"])),
            f"{row['learned'] / 1e6:.2f}M",
            f"{row['flop'] / 1e9:.4g}",
            f"{row['memory'] / 1e9:.3g}",
            _hours(row["hours"]),
        )
    console = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 130)
    console.print(table)
    for line in _summary(report):
        console.print(Text(line), soft_wrap=True)


def _summary(report: Mapping[str, Any]) -> list[str]:
    settings, rate = report["settings"], report["rate"]
    lines = [
        f"{report['points']} points: {len(settings)} differ, "
        f"{report['equal']} are equal to others, "
        f"{report['overlapping']} need more layers than the tower has, "
        f"{report['idle']} train no layer"
    ]
    if len(settings) > MAX_SETTINGS:
        lines.append(f"{len(settings) - MAX_SETTINGS} more are in space.json")
    for kind in ("left_out", "refused"):
        lines += [f"left out: {name}: {reason}" for name, reason in report[kind].items()]
    speed = f"{rate['flops'] / 1e12:.3g} TFLOP/s a device" if rate["flops"] else "rate of a device"
    lines.append(f"{speed}: {rate['source']}")
    limit = f", and no more than {report['max_hours']:g} of them" if report["max_hours"] else ""
    lines.append(f"at most {_hours(report['hours'])} device-hours for the whole search{limit}")
    return lines


def _hours(hours: float | None) -> str:
    return "unknown" if hours is None else f"{hours:.3g}"


class SearchWatch(tune.Callback):
    """Collects the results of trials, and shows them while the `with` block is active."""

    def __init__(self, name: str, budget: Budget, flop: float) -> None:
        """`name`: of the search; `flop`: predicted for the whole search, at most."""
        self._name = name
        self._budget = budget
        self._flop = flop
        self._epoch_flop: Mapping[str, float] = {}
        """FLOP of an epoch of each trial, by name."""
        self._rows: dict[str, dict[str, Any]] = {}
        self._live: Live | None = None
        self._scheduler: SearchScheduler | None = None
        self._searcher: ListSearcher | None = None
        self._jobs: Mapping[str, TrialJob] = {}

    def add_trials(
        self,
        jobs: Mapping[str, TrialJob],
        flop: Mapping[str, float],
        searcher: ListSearcher,
        scheduler: SearchScheduler,
        past: Mapping[str, TrialOutcome],
    ) -> None:
        """Add the trials of the next round.

        Args:
            jobs: The trials, by name.
            flop: FLOP of an epoch of each.
            searcher: Hands them out.
            scheduler: Stops them.
            past: Progress of each so far.
        """
        self._jobs, self._searcher, self._scheduler = jobs, searcher, scheduler
        self._epoch_flop = {**self._epoch_flop, **flop}
        for name, outcome in past.items():
            if outcome.epochs:
                state = "paused" if outcome.end == "open" else outcome.end
                rate = outcome.epochs[-1]["rows_per_second"]
                self._rows[name] = _row(state, len(outcome.epochs), outcome.best, rate)

    def __enter__(self) -> "SearchWatch":
        if sys.stderr.isatty():
            self._live = Live(
                get_renderable=self._table, console=Console(stderr=True), refresh_per_second=2
            )
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        name = trial.config["name"]
        before = self._rows.get(name, _row("running", 0, None, 0.0))
        self._rows[name] = before | {"state": "running"}

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **_: Any
    ) -> None:
        name = trial.config["name"]
        self._budget.update([self._jobs[name]])
        best = max(result[METRIC], self._rows[name]["best"] or -1.0)
        self._rows[name] = _row("running", result["epoch"], best, result["rows_per_second"])
        self._export()
        if self._live is None:
            logger.info(
                "search: %s, epoch %d: %.4f; %s",
                name,
                result["epoch"],
                result[METRIC],
                "; ".join(self._status()),
            )

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **_: Any
    ) -> None:
        name = trial.config["name"]
        assert self._scheduler is not None
        is_last = self._rows[name]["epoch"] == self._jobs[name].config.optim.epochs
        early = "stopped" if name in self._scheduler.reasons else "paused"
        self._rows[name]["state"] = "finished" if is_last else early
        self._export()

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        self._rows[trial.config["name"]]["state"] = "failed"
        self._export()

    def _export(self) -> None:
        """Set the metrics of the search, for dashboards."""
        record = functools.partial(metrics.record, search=self._name)
        for state, count in self._counts().items():
            record("img2prompt_trials", count, state=state)
        scores = [row["best"] for row in self._rows.values() if row["best"] is not None]
        record("img2prompt_search_best_val_cosine", max(scores, default=None))
        record("img2prompt_search_device_hours", self._budget.hours)
        record("img2prompt_search_device_hours_left", self._hours_left())

    def _counts(self) -> dict[str, int]:
        """Return the number of trials by state."""
        assert self._searcher is not None
        states = [row["state"] for row in self._rows.values()]
        return {state: states.count(state) for state in STATES} | {
            "waiting": self._searcher.waiting
        }

    def _status(self) -> list[str]:
        """Return lines with the counts of trials, the best, the rungs and the hours."""
        assert self._scheduler is not None
        lines = [", ".join(f"{count} {state}" for state, count in self._counts().items())]
        if scored := [(row["best"], name) for name, row in self._rows.items() if row["best"]]:
            lines.append("best {:.4f} {}".format(*max(scored)))
        for at, count, score in self._scheduler.reached_rungs():
            lines.append(f"rung {at:g}: {count} trials, {score:.4f} or more continue")
        rate = sum(row["rate"] for row in self._rows.values() if row["state"] == "running")
        return [*lines, f"{rate:.0f} images/s", self._hours()]

    def _hours(self) -> str:
        """Return the hours spent, and those left."""
        left = self._hours_left()
        remaining = "" if left is None else f", at most {left:.3g} left"
        return f"{self._budget.hours:.3g} device-hours spent{remaining}"

    def _hours_left(self) -> float | None:
        """Return the hours to the end at the same rate, or to the limit; None if unknown."""
        spent, limit = self._budget.hours, self._budget.max_hours
        done = sum(row["epoch"] * self._epoch_flop[name] for name, row in self._rows.items())
        left = [max(0.0, self._flop / done - 1) * spent] if done else []
        left += [max(0.0, limit - spent)] if limit else []
        return min(left, default=None)

    def _table(self) -> Group:
        table = Table()
        for column in ("trial", "", "epoch", "best val cosine", "images/s"):
            table.add_column(column, justify="left" if column in ("trial", "") else "right")
        ranked = sorted(self._rows.items(), key=lambda item: _rank(item[1]))
        for name, row in ranked[:ROWS]:
            best = "" if row["best"] is None else f"{row['best']:.4f}"
            rate = f"{row['rate']:.0f}" if row["rate"] else ""
            table.add_row(name, row["state"], str(row["epoch"]), best, rate)
        return Group(table, Text("\n".join(self._status())))


def _row(state: str, epoch: int, best: float | None, rate: float) -> dict[str, Any]:
    return {"state": state, "epoch": epoch, "best": best, "rate": rate}


def _rank(row: Mapping[str, Any]) -> tuple[bool, float]:
    """Return a sort key: running trials first, then by score, best first."""
    return row["state"] != "running", -(row["best"] if row["best"] is not None else -1.0)
