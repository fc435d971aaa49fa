"""Work that waits for files is done in threads, a bounded piece ahead of who reads the rows."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from queue import Empty, Full, Queue
from typing import BinaryIO, TypeVar

from img2prompt.data import images
from img2prompt.data.sources.containers import damage
from img2prompt.data.sources.reader import PictureReader
from img2prompt.data.sources.rows import Rejected, Row, sized, unread_picture

THREADS = 8  # opening a file of an object store waits for the network
_ITEMS_AT_ONCE = 512
_AHEAD = 1024

T = TypeVar("T")
A = TypeVar("A")


def in_turn(
    function: Callable[[A], Iterator[T]], items: Iterable[A], threads: int = THREADS
) -> Iterator[T]:
    """All that `function` gives for the first item, then for the second and so on.

    The next items are read in other threads meanwhile, each at most 1,024 values ahead.
    """
    stop = threading.Event()
    running: deque[tuple[Queue[T], Future[None]]] = deque()
    coming = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        try:
            while True:
                for item in islice(coming, threads - len(running)):
                    queue: Queue[T] = Queue(_AHEAD)
                    running.append((queue, pool.submit(_fill, queue, stop, function, item)))
                if not running:
                    return
                yield from _drain(*running.popleft())
        finally:
            stop.set()


def _fill(
    queue: "Queue[T]", stop: threading.Event, function: Callable[[A], Iterator[T]], item: A
) -> None:
    for value in function(item):
        while not stop.is_set():
            with suppress(Full):
                queue.put(value, timeout=0.1)
                break
        if stop.is_set():
            return


def _drain(queue: "Queue[T]", done: "Future[None]") -> Iterator[T]:
    while not (done.done() and queue.empty()):
        with suppress(Empty):
            yield queue.get(timeout=0.01)
    done.result()


def in_order(function: Callable[[A], T], items: Iterable[A]) -> Iterator[T]:
    """`function` of each item, for items that are quickly done."""
    items = iter(items)
    with ThreadPoolExecutor(THREADS) as pool:
        while chunk := list(islice(items, _ITEMS_AT_ONCE)):
            yield from pool.map(function, chunk)


def with_sizes(rows: Iterable[Row | Rejected]) -> Iterator[Row | Rejected]:
    """The same rows, where each picture of unknown size has it read from its header.

    A picture that is gone, empty, damaged or absurdly large becomes a rejected row.
    """
    own = threading.local()
    rows = iter(rows)
    with ThreadPoolExecutor(THREADS) as pool:
        while chunk := list(islice(rows, _ITEMS_AT_ONCE)):
            unsized = filter(_is_unsized, chunk)
            found = pool.map(lambda row: _with_size(row, own), unsized)
            for row in chunk:
                yield next(found) if _is_unsized(row) else row


def _is_unsized(row: Row | Rejected) -> bool:
    return isinstance(row, dict) and not (row["width"] and row["height"])


def _with_size(row: Row | Rejected, own: threading.local) -> Row | Rejected:
    assert isinstance(row, dict)
    if not hasattr(own, "reader"):
        own.reader = PictureReader()
    try:
        with damage("damaged"), own.reader.open(row["uri"], row["member"]) as picture:
            width, height = probe(picture)
    except (images.BadPicture, OSError, ValueError) as error:
        where = f"{row['uri']} {row['member']}".strip()
        return unread_picture(row["id"], where, error)
    return sized(row, width, height)


def probe(picture: BinaryIO) -> tuple[int, int]:
    """Width and height in pixels; BadPicture when the file is empty or no picture."""
    if not picture.read(1):
        raise images.BadPicture("the file has 0 bytes")
    picture.seek(0)
    return images.probe(picture)
