"""Long lists are worked on in pieces."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

T = TypeVar("T")

PORTION = 16_384
"""Pictures that are listed apart, where each is known by itself."""


def in_pieces(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items in lists of `size`, the last one shorter. (Python 3.12 has itertools.batched.)"""
    items = iter(items)
    while piece := list(islice(items, size)):
        yield piece
