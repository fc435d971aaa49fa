"""Thousands of Ray tasks, a few at a time."""

from collections.abc import Iterable, Iterator
from typing import Any

import ray
from ray.exceptions import RayTaskError

from img2prompt.errors import UserError

AHEAD = 2
"""Tasks submitted for each worker: one that runs and one whose input has already arrived."""


def run_bounded(tasks: Iterable[ray.ObjectRef], workers: float) -> Iterator[Any]:
    """Yield the results of tasks as they finish, in any order.

    `tasks` is an iterator that submits a task for each reference it yields. At most
    AHEAD * workers tasks are submitted and unfinished, so that arguments in the object store, and
    memory, do not grow with the number of tasks. Ray runs a task again when its worker or node
    dies. An exception that a task raises is raised here.
    """
    pending: list[ray.ObjectRef] = []
    for ref in tasks:
        pending.append(ref)
        if len(pending) >= AHEAD * max(1, int(workers)):
            yield _take_first(pending)
    while pending:
        yield _take_first(pending)


def _take_first(pending: list[ray.ObjectRef]) -> Any:
    """Remove the first task that finishes from `pending` and return its result."""
    (ready,), _ = ray.wait(pending, num_returns=1)
    pending.remove(ready)
    try:
        return ray.get(ready)
    except RayTaskError as error:
        if isinstance(error.cause, UserError):  # shown to the user without Ray's traceback
            raise error.cause from None
        raise
