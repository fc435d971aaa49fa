"""Device-hours that the trials of a search have used, and their limit."""

from collections.abc import Iterable

from img2prompt.search.trials import TrialJob, worker_seconds_of

LIMIT = "limit"
"""Reason of trials that were stopped, or not started, because `max_hours` was reached."""


class Budget:
    """Device-hours in the training loops of all trials, of this and earlier processes."""

    def __init__(self, max_hours: float) -> None:
        """`max_hours`: 0 for no limit."""
        self.max_hours = max_hours
        self._seconds: dict[str, float] = {}

    def update(self, jobs: Iterable[TrialJob]) -> None:
        """Read how much these trials have used by now."""
        for job in jobs:
            self._seconds[job.folder] = worker_seconds_of(job)

    @property
    def hours(self) -> float:
        return sum(self._seconds.values()) / 3600

    @property
    def is_spent(self) -> bool:
        """True when the hours have reached their limit."""
        return 0 < self.max_hours <= self.hours
