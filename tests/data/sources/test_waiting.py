import threading
import time
from itertools import count

import pytest

from img2prompt.data.sources.waiting import in_order, in_turn


def test_in_turn_keeps_the_order() -> None:
    def numbers(size: int):
        for number in range(size):
            if number % 50 == 0:
                time.sleep(0.001)
            yield size, number

    sizes = [300, 0, 5, 2000, 1] * 4
    expected = [(size, number) for size in sizes for number in range(size)]
    assert list(in_turn(numbers, sizes, threads=3)) == expected


def test_in_turn_reads_a_bounded_piece_ahead_and_stops() -> None:
    made, items = [], []

    def endless(item: int):
        items.append(item)
        for number in count():
            made.append(number)
            yield number

    before = threading.active_count()
    values = in_turn(endless, count(), threads=2)
    assert [next(values) for _ in range(3)] == [0, 1, 2]
    values.close()
    assert sorted(items) == [0, 1]
    assert len(made) < 2 * 1100
    assert threading.active_count() == before


def test_errors_reach_who_reads() -> None:
    def broken(item: int):
        yield item
        if item == 2:
            raise KeyError("bug")

    values = in_turn(broken, [1, 2, 3])
    assert [next(values), next(values)] == [1, 2]
    with pytest.raises(KeyError, match="bug"):
        next(values)
    assert list(in_order(str, range(1500))) == [str(number) for number in range(1500)]
