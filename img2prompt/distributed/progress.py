"""Progress while a long stage works, and a report of where its time went."""

import json
import logging
import sys
import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import rich.progress
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from img2prompt.distributed import metrics
from img2prompt.draft import Draft

logger = logging.getLogger(__name__)

SECONDS = 5.0
"""Shortest time between two lines of progress."""

TIMINGS = "timings.json"
"""File in a stage's folder with the step times of its last run."""


class Progress:
    """Counts rows: in a terminal a live bar, else a log line every few seconds.

    Without a `total`, share and time left are not shown.
    """

    def __init__(self, stage: str, total: int | None, unit: str = "rows") -> None:
        """`unit` names the rows in the log."""
        self._stage, self._unit = stage, unit
        self._total = total
        self._done = 0
        self._began = self._logged = time.perf_counter()
        self._bar = LiveBar(stage, total) if sys.stderr.isatty() else None
        if self._bar:
            weakref.finalize(self, self._bar.stop)  # also after an error, or without a total

    def add(self, rows: int) -> None:
        """Count rows that are done; log a line when one is due or all rows are done."""
        self._done += rows
        metrics.count("img2prompt_rows", rows, stage=self._stage)
        if self._bar:
            self._bar.show(self._done)
        now = time.perf_counter()
        if now - self._logged < SECONDS and self._done != self._total:
            return
        self._logged = now
        rate = self._done / max(now - self._began, 1e-9)
        metrics.record("img2prompt_rows_per_second", rate, stage=self._stage)
        if not self._bar:
            logger.info("%s: %s%s", self._stage, self._count(), self._speed(rate))

    def _count(self) -> str:
        if not self._total:
            return f"{self._done} {self._unit}"
        return f"{self._done} of {self._total} {self._unit} ({self._done / self._total:.0%})"

    def _speed(self, rate: float) -> str:
        if not self._done:
            return ""
        rows_left = (self._total or self._done) - self._done
        time_left = f", {max(1, round(rows_left / rate))} s left" if rows_left else ""
        return f", {two_digits(rate)} {self._unit}/s{time_left}"


class LiveBar:
    """A bar at the bottom of a terminal, with log lines above it; it disappears at the end."""

    def __init__(self, stage: str, total: int | None) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        self._total = total
        self._bars = rich.progress.Progress(
            *columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True
        )
        self._task = self._bars.add_task(stage, total=total)
        self._bars.start()
        # rich prints above the bar whatever is written to sys.stderr, which it has replaced.
        self._handlers = [
            (handler, handler.setStream(sys.stderr))
            for handler in logging.getLogger().handlers
            if type(handler) is logging.StreamHandler and handler.stream is sys.__stderr__
        ]

    def show(self, done: int) -> None:
        self._bars.update(self._task, completed=done)
        if done == self._total:
            self.stop()

    def stop(self) -> None:
        """Remove the bar; a second call does nothing."""
        for handler, stream in self._handlers:
            if stream is not None:
                handler.setStream(stream)
        self._handlers = []
        self._bars.stop()


def two_digits(number: float) -> str:
    """Return a rate with at least two digits: 1234, 12, 1.2, 0.12."""
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"


class StepTimes:
    """Seconds that each step of a stage was busy.

    `slots` are the workers of each step. The bottleneck is the step whose workers were busy for
    the largest share of the time.
    """

    def __init__(self, stage: str, slots: Mapping[str, int], unit: str = "images") -> None:
        self._stage = stage
        self._unit = unit
        self._slots = dict(slots)
        self.busy = dict.fromkeys(slots, 0.0)
        self._rows = 0
        self._began = time.perf_counter()

    def add(self, step: str, seconds: float) -> None:
        """Add seconds in which one worker of a step was busy."""
        self.busy[step] += seconds

    def add_rows(self, rows: int, seconds: Mapping[str, float]) -> None:
        """Add rows that a worker has finished, and the seconds of its steps."""
        self._rows += rows
        for step, busy in seconds.items():
            self.add(step, busy)

    def add_columns(self, table: pa.Table) -> None:
        """Add the rows of a table that has their seconds in the columns `STEP_s`."""
        self._rows += table.num_rows
        for step in self.busy:
            if f"{step}_s" in table.column_names:
                self.add(step, float(table[f"{step}_s"].to_numpy().sum()))

    @contextmanager
    def measure(self, step: str) -> Iterator[None]:
        """Add the seconds that the block takes."""
        began = time.perf_counter()
        yield
        self.add(step, time.perf_counter() - began)

    def report(self) -> dict[str, Any]:
        """Return seconds by step, rows/s, busy shares and the bottleneck, ready for JSON."""
        wall = max(time.perf_counter() - self._began, 1e-9)
        share = {step: busy / (wall * self._slots[step]) for step, busy in self.busy.items()}
        return {
            "wall_s": wall,
            "rows": self._rows,
            "rows_per_s": self._rows / wall,
            "busy_s": self.busy,
            "at_once": self._slots,
            "busy_share": share,
            "bottleneck": max(share, key=share.__getitem__),
        }

    def keep(self, draft: Draft) -> None:
        """Log the report, and write it as TIMINGS into a stage's folder."""
        draft.write_bytes(TIMINGS, json.dumps(self.log(), indent=2).encode(), rows=0)

    def log(self) -> dict[str, Any]:
        """Log the report in one line and return it."""
        report = self.report()
        steps = ", ".join(
            f"{step} {busy:.1f} s ({report['busy_share'][step]:.0%} of {self._slots[step]})"
            for step, busy in self.busy.items()
        )
        logger.info(
            "%s: %d rows in %.1f s, %s %s/s; %s; bottleneck: %s",
            self._stage,
            report["rows"],
            report["wall_s"],
            two_digits(report["rows_per_s"]),
            self._unit,
            steps,
            report["bottleneck"],
        )
        return report
