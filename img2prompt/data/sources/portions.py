"""Split long iterables into portions that are listed independently."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

T = TypeVar("T")

PORTION = 16_384
"""Pictures of one portion, where each can be listed independently."""


def in_portions(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield the items in lists of `size`, the last one shorter (Python 3.12: itertools.batched)."""
    items = iter(items)
    while piece := list(islice(items, size)):
        yield piece
