"""Device-hours that the trials of a search have taken, and may take."""

from collections.abc import Iterable

from img2prompt.search.trials import TrialJob, seconds

LIMIT = "limit"
"""Why a trial was stopped, or not begun, when the hours were spent."""


class Budget:
    """Hours of all devices together, in the loops of all trials of this and earlier processes."""

    def __init__(self, max_hours: float) -> None:
        """`max_hours`: 0 for no limit."""
        self.max_hours = max_hours
        self._seconds: dict[str, float] = {}

    def count(self, jobs: Iterable[TrialJob]) -> None:
        """Look how much these trials have taken by now."""
        for job in jobs:
            self._seconds[job.folder] = seconds(job)

    @property
    def hours(self) -> float:
        return sum(self._seconds.values()) / 3600

    @property
    def spent(self) -> bool:
        return 0 < self.max_hours <= self.hours
