"""Results of a function in order, computed in threads a bounded number of items ahead."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
T = TypeVar("T")


def map_ahead(function: Callable[[A], T], items: Iterable[A], threads: int) -> Iterator[T]:
    """Yield `function(item)` in the order of the items.

    Beside the result that is read, as many more as there are threads are computed or wait.
    """
    pending: deque[Future[T]] = deque()
    with ThreadPoolExecutor(threads, "ahead") as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
