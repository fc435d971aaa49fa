import threading

import pytest

from img2prompt.data.ahead import map_ahead


def test_results_come_in_order_and_a_bounded_number_ahead() -> None:
    started: list[int] = []

    def double(number: int) -> int:
        started.append(number)
        return 2 * number

    results = map_ahead(double, range(20), threads=2)
    assert next(results) == 0
    assert set(started) <= {0, 1, 2}
    assert list(results) == list(range(2, 40, 2))


def test_an_error_comes_at_its_item_and_ends_the_threads() -> None:
    before = threading.active_count()
    results = map_ahead(lambda number: 1 // number, [1, 0, 1, 1, 1], threads=2)
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert threading.active_count() == before
