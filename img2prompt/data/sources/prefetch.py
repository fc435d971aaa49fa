"""Work that waits for files, done in threads a bounded number of items ahead of the reader."""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, TypeVar

from img2prompt.data import images
from img2prompt.data.sources.containers import damage
from img2prompt.data.sources.portions import in_portions
from img2prompt.data.sources.reader import PictureReader
from img2prompt.data.sources.rows import Rejected, Row, sized, unread_picture

THREADS = 8  # opening a file of an object store waits for the network
_ITEMS_AT_ONCE = 512

T = TypeVar("T")
A = TypeVar("A")


def in_order(function: Callable[[A], T], items: Iterable[A]) -> Iterator[T]:
    """Yield `function` of each item in order; for functions that return quickly."""
    with ThreadPoolExecutor(THREADS) as pool:
        for piece in in_portions(items, _ITEMS_AT_ONCE):
            yield from pool.map(function, piece)


def with_sizes(rows: Iterable[Row | Rejected]) -> Iterator[Row | Rejected]:
    """Yield the rows in order, with unknown sizes read from the pictures' headers.

    A picture that is missing, empty, damaged or absurdly large becomes a rejected row.
    """
    own = threading.local()
    with ThreadPoolExecutor(THREADS) as pool:
        for piece in in_portions(rows, _ITEMS_AT_ONCE):
            unsized = filter(_is_unsized, piece)
            sized_rows = pool.map(lambda row: _with_size(row, own), unsized)
            for row in piece:
                yield next(sized_rows) if _is_unsized(row) else row


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
    """Return width and height in pixels; raise BadPicture for an empty file or no picture."""
    if not picture.read(1):
        raise images.BadPicture("the file has 0 bytes")
    picture.seek(0)
    return images.probe(picture)
