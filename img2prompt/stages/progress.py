"""A line now and then while a long stage works."""

import logging
import time

logger = logging.getLogger(__name__)

SECONDS = 5.0


class Progress:
    """Counts rows and logs count, share, rate and time left, at most every few seconds."""

    def __init__(self, what: str, total: int) -> None:
        self._what = what
        self._total = total
        self._done = 0
        self._began = self._told = time.perf_counter()

    def add(self, rows: int) -> None:
        self._done += rows
        now = time.perf_counter()
        if now - self._told < SECONDS and self._done < self._total:
            return
        self._told = now
        rate = self._done / max(now - self._began, 1e-9)
        logger.info(
            "%s: %d of %d rows (%.0f %%), %.0f rows/s, %.0f s left",
            self._what,
            self._done,
            self._total,
            100 * self._done / max(1, self._total),
            rate,
            (self._total - self._done) / max(rate, 1e-9),
        )
