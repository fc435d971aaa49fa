"""Threads for torch operations, of one core each."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import torch

A = TypeVar("A")
B = TypeVar("B")


class Threads:
    """Threads in each of which torch uses one core. With a count of 1 the caller's thread is used.

    Torch's own threads wait for each other after every operation. With operations of a millisecond
    and one more busy process on the machine that is 5 to 10 times slower; longer independent work
    is hardly affected.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        if count == 1:
            return
        before = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(count, "torch", _one_core)
        started = Barrier(count)
        list(self._pool.map(lambda _: started.wait(), range(count)))
        # Torch has also applied their number to all future threads.
        torch.set_num_threads(before)

    def map(self, function: Callable[[A], B], arguments: Iterable[A]) -> Iterator[B]:
        """Yield results in the order of the arguments, of which a few are in progress at a time."""
        if self._count == 1:
            yield from map(function, arguments)
            return
        pending: deque[Future[B]] = deque()
        for argument in arguments:
            pending.append(self._pool.submit(function, argument))
            if len(pending) > 2 * self._count:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _one_core() -> None:
    # The first query in a thread adopts the other threads' number, so set it afterwards.
    torch.get_num_threads()
    torch.set_num_threads(1)
