import pytest
import ray

from img2prompt.distributed.tasks import AHEAD, run_bounded
from img2prompt.errors import UserError

pytestmark = pytest.mark.ray


def test_every_task_runs_once_and_few_wait(cluster) -> None:
    double = ray.remote(lambda number: 2 * number)
    started: list[int] = []

    def tasks():
        for number in range(20):
            started.append(number)
            yield double.remote(number)

    found, most = [], 0
    for result in run_bounded(tasks(), workers=2):
        most = max(most, len(started) - len(found))
        found.append(result)
    assert sorted(found) == [2 * number for number in range(20)]
    assert most == 2 * AHEAD


def test_what_a_task_raises_is_raised(cluster) -> None:
    def fail(number):
        raise ValueError(f"number {number}")

    with pytest.raises(ValueError, match="number 7"):
        list(run_bounded([ray.remote(fail).remote(7)], workers=1))


def test_what_the_user_must_know_comes_without_a_traceback(cluster) -> None:
    def fail():
        raise UserError("the disk is full")

    with pytest.raises(UserError) as caught:
        list(run_bounded([ray.remote(fail).remote()], workers=1))
    assert str(caught.value) == "the disk is full"


def test_nothing_to_do_is_done(cluster) -> None:
    assert list(run_bounded([], workers=1)) == []
