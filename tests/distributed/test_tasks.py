import time

import pytest
import ray

from img2prompt.distributed.tasks import AHEAD, map_in_order, run_bounded
from img2prompt.errors import UserError

pytestmark = pytest.mark.ray


def test_every_task_runs_once_and_few_are_pending(cluster) -> None:
    double = ray.remote(lambda number: 2 * number)
    submitted: list[int] = []

    def tasks():
        for number in range(20):
            submitted.append(number)
            yield double.remote(number)

    results, most = [], 0
    for result in run_bounded(tasks(), workers=2):
        most = max(most, len(submitted) - len(results))
        results.append(result)
    assert sorted(results) == [2 * number for number in range(20)]
    assert most == 2 * AHEAD


def test_an_exception_of_a_task_is_raised(cluster) -> None:
    def fail(number):
        raise ValueError(f"number {number}")

    with pytest.raises(ValueError, match="number 7"):
        list(run_bounded([ray.remote(fail).remote(7)], workers=1))


def test_a_user_error_of_a_task_is_raised_without_rays_traceback(cluster) -> None:
    def fail():
        raise UserError("the disk is full")

    with pytest.raises(UserError) as caught:
        list(run_bounded([ray.remote(fail).remote()], workers=1))
    assert str(caught.value) == "the disk is full"


def test_no_tasks_give_no_results(cluster) -> None:
    assert list(run_bounded([], workers=1)) == []


def test_a_map_yields_results_in_the_order_of_its_items(cluster) -> None:
    def late_first(number: int) -> int:
        time.sleep(0.3 if number % 4 == 0 else 0)
        return 2 * number

    assert list(map_in_order(late_first, range(12))) == list(range(0, 24, 2))
    assert list(map_in_order(late_first, [])) == []
