import threading
import time
from collections.abc import Iterator

import pytest
import torch

from img2prompt.data.similar.threads import Threads


@pytest.fixture(params=[1, 3])
def count(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture(autouse=True)
def torch_uses_two() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_results_come_in_order_and_each_new_thread_has_one_core(count: int) -> None:
    def work(number: int) -> tuple[int, int, str]:
        time.sleep(0.002 * (number % 3))
        return number, torch.get_num_threads(), threading.current_thread().name

    found = [*Threads(count).map(work, range(40))]
    assert [number for number, _, _ in found] == [*range(40)]
    assert {cores for _, cores, _ in found} == {1 if count > 1 else 2}
    assert len({name for _, _, name in found}) == count


def test_other_threads_keep_their_number(count: int) -> None:
    Threads(count)
    seen = [torch.get_num_threads()]
    other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert seen == [2, 2]


def test_arguments_are_taken_lazily(count: int) -> None:
    asked = []

    def numbers():
        for number in range(100):
            asked.append(number)
            yield number

    results = Threads(count).map(lambda number: number, numbers())
    assert next(results) == 0
    assert len(asked) <= 2 * count + 1
    assert [*results] == [*range(1, 100)]


def test_an_error_is_raised_where_results_are_read(count: int) -> None:
    results = Threads(count).map(lambda number: 1 // number, [1, 0, 1])
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)
