"""Ray tasks by the thousand, a few at a time."""

from collections.abc import Iterable, Iterator
from typing import Any

import ray
from ray.exceptions import RayTaskError

from img2prompt.errors import UserError

AHEAD = 2
"""Tasks under way for each worker: one that runs and one whose input is already there."""


def run_bounded(started: Iterable[ray.ObjectRef], workers: float) -> Iterator[Any]:
    """Results as they come, in any order, of tasks that start when `started` is asked for them.

    At most AHEAD * workers are under way, and arguments wait in the object store only that long, so
    memory does not grow with the number of tasks. A task whose worker or node dies is run again by
    Ray; what it raises itself is raised here.
    """
    coming: list[ray.ObjectRef] = []
    for ref in started:
        coming.append(ref)
        if len(coming) >= AHEAD * max(1, int(workers)):
            yield _first(coming)
    while coming:
        yield _first(coming)


def _first(coming: list[ray.ObjectRef]) -> Any:
    """Take the result that is there first out of `coming`."""
    (ready,), _ = ray.wait(coming, num_returns=1)
    coming.remove(ready)
    try:
        return ray.get(ready)
    except RayTaskError as error:
        if isinstance(error.cause, UserError):  # said to the user, without Ray's traceback
            raise error.cause from None
        raise
