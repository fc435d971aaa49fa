"""Trials that share a machine."""

import pytest

from img2prompt.search.capacity import trials_on_a_machine

HEAD = {"CPU": 4.0}
NO_WORK = {"memory": 1e9}
GPUS_8 = {"CPU": 96.0, "GPU": 8.0}


@pytest.mark.parametrize(
    ("concurrent", "workers", "nodes", "expected"),
    [
        (8, 1, [HEAD, GPUS_8], 8),
        (16, 1, [HEAD, GPUS_8, GPUS_8], 8),
        (3, 1, [GPUS_8, GPUS_8], 3),
        (4, 4, [HEAD, GPUS_8, GPUS_8], 2),
        (1, 16, [HEAD, GPUS_8, GPUS_8], 1),
        (6, 2, [NO_WORK, HEAD, HEAD, HEAD, HEAD], 2),
        (2, 1, [HEAD], 2),
        (2, 1, [], 2),
    ],
)
def test_trials_share_the_machines_that_have_their_devices(
    concurrent: int, workers: int, nodes: list[dict[str, float]], expected: int
) -> None:
    assert trials_on_a_machine(concurrent, workers, nodes) == expected
