"""Thousands of Ray tasks, a few at a time."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import ray
from ray.exceptions import RayTaskError

from img2prompt.distributed import cluster
from img2prompt.errors import UserError

A = TypeVar("A")
R = TypeVar("R")

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


def map_in_order(function: Callable[[A], R], items: Iterable[A]) -> Iterator[R]:
    """Call `function` in a Ray task for each item and yield the results in the items' order.

    `function`, with the data that it holds, is sent once to each machine.
    """
    shared = ray.put(function)
    started = (_call.remote(shared, number, item) for number, item in enumerate(items))
    early: dict[int, R] = {}
    upcoming = 0
    for number, result in run_bounded(started, cluster.resources().cpus):
        early[number] = result
        while upcoming in early:
            yield early.pop(upcoming)
            upcoming += 1


@ray.remote
def _call(function: Callable[[A], R], number: int, item: A) -> tuple[int, R]:
    return number, function(item)


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
