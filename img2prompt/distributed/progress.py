"""A line now and then while a long stage works, and at its end where the time went."""

import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from img2prompt.artifact import Draft

logger = logging.getLogger(__name__)

SECONDS = 5.0
TIMINGS = "timings.json"
"""File of a stage's folder: where the time of its last run went."""


class Progress:
    """Counts rows and logs count, share, rate and time left, at most every few seconds.

    Without a `total` there is no share, and no time left.
    """

    def __init__(self, what: str, total: int | None) -> None:
        self._what = what
        self._total = total
        self._done = 0
        self._began = self._told = time.perf_counter()

    def add(self, rows: int) -> None:
        self._done += rows
        now = time.perf_counter()
        if now - self._told < SECONDS and self._done != self._total:
            return
        self._told = now
        rate = self._done / max(now - self._began, 1e-9)
        if self._total is None:
            logger.info("%s: %d rows, %.0f rows/s", self._what, self._done, rate)
            return
        logger.info(
            "%s: %d of %d rows (%.0f %%), %.0f rows/s, %.0f s left",
            self._what,
            self._done,
            self._total,
            100 * self._done / max(1, self._total),
            rate,
            (self._total - self._done) / max(rate, 1e-9),
        )


class StepTimes:
    """Seconds that each step of a stage was busy, and how many of a step could be at once.

    The bottleneck is the step whose workers were busy for the largest share of the time.
    """

    def __init__(self, what: str, slots: Mapping[str, int], unit: str = "images") -> None:
        self._what = what
        self._unit = unit
        self._slots = dict(slots)
        self.busy = dict.fromkeys(slots, 0.0)
        self._rows = 0
        self._began = time.perf_counter()

    def add(self, step: str, seconds: float) -> None:
        self.busy[step] += seconds

    def add_rows(self, rows: int, seconds: Mapping[str, float]) -> None:
        """Rows that a worker has finished, with the seconds of its steps."""
        self._rows += rows
        for step, busy in seconds.items():
            self.add(step, busy)

    def add_columns(self, table: pa.Table) -> None:
        """Rows with their own seconds in the columns `STEP_s`."""
        self._rows += table.num_rows
        for step in self.busy:
            if f"{step}_s" in table.column_names:
                self.add(step, float(table[f"{step}_s"].to_numpy().sum()))

    @contextmanager
    def measure(self, step: str) -> Iterator[None]:
        """Add what the block takes."""
        began = time.perf_counter()
        yield
        self.add(step, time.perf_counter() - began)

    def report(self) -> dict[str, Any]:
        """Ready for JSON: seconds by step, rows/s, share of the time busy, and the bottleneck."""
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
        """Log the report, and write it as the TIMINGS of a folder."""
        draft.write_bytes(TIMINGS, json.dumps(self.log(), indent=2).encode(), rows=0)

    def log(self) -> dict[str, Any]:
        """Log the report in one line; returns it."""
        found = self.report()
        steps = ", ".join(
            f"{step} {busy:.1f} s ({found['busy_share'][step]:.0%} of {self._slots[step]})"
            for step, busy in self.busy.items()
        )
        logger.info(
            "%s: %d rows in %.1f s, %.0f %s/s; %s; bottleneck: %s",
            self._what,
            found["rows"],
            found["wall_s"],
            found["rows_per_s"],
            self._unit,
            steps,
            found["bottleneck"],
        )
        return found
