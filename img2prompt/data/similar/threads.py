"""Torch work in threads of one core each."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import torch

A = TypeVar("A")
B = TypeVar("B")


class Threads:
    """Threads in each of which torch uses one core; a single one is the caller's own.

    Torch's own threads wait for each other after every operation. With operations of a millisecond,
    one more busy process on the machine makes that 5 to 10 times slower; work that is independent
    for longer hardly notices it.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        if count == 1:
            return
        before = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(count, "torch", _one_core)
        started = Barrier(count)
        list(self._pool.map(lambda _: started.wait(), range(count)))
        # Torch also took their number for that of all threads to come.
        torch.set_num_threads(before)

    def map(self, function: Callable[[A], B], arguments: Iterable[A]) -> Iterator[B]:
        """Results in the order of the arguments, of which a few are under way at a time."""
        if self._count == 1:
            yield from map(function, arguments)
            return
        under_way: deque[Future[B]] = deque()
        for argument in arguments:
            under_way.append(self._pool.submit(function, argument))
            if len(under_way) > 2 * self._count:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()


def _one_core() -> None:
    # A thread's first look takes over the number of the others, also after a number was set.
    torch.get_num_threads()
    torch.set_num_threads(1)
