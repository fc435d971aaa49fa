import logging

import pyarrow as pa
import pytest

from img2prompt.distributed import progress
from img2prompt.distributed.progress import Progress, StepTimes


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time is the last number of this list."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[-1])
    return now


def test_a_line_is_logged_every_few_seconds_and_at_the_end(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="img2prompt")
    count = Progress("shards", total=200)
    for second, rows in [(101.0, 10), (104.9, 10), (105.0, 30), (109.0, 50), (110.0, 100)]:
        clock.append(second)
        count.add(rows)
    assert caplog.messages == [
        "shards: 50 of 200 rows (25 %), 10 rows/s, 15 s left",
        "shards: 200 of 200 rows (100 %), 20 rows/s",
    ]


def test_a_slow_stage_logs_two_digits_in_its_own_unit(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="img2prompt")
    count = Progress("generate", total=16, unit="pictures")
    clock.append(120.0)
    count.add(8)
    assert caplog.messages == ["generate: 8 of 16 pictures (50 %), 0.4 pictures/s, 20 s left"]


def test_a_stage_without_rows_logs_zeros(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="img2prompt")
    Progress("shards", total=0).add(0)
    assert caplog.messages == ["shards: 0 of 0 rows (0 %), 0 rows/s"]


def test_share_and_time_left_are_not_logged_without_a_total(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="img2prompt")
    count = Progress("index", total=None)
    for second, rows in [(101.0, 10), (110.0, 190)]:
        clock.append(second)
        count.add(rows)
    assert caplog.messages == ["index: 200 rows, 20 rows/s"]


def test_the_bottleneck_is_the_step_whose_workers_were_busiest(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="img2prompt")
    times = StepTimes("features", {"decode": 4, "forward": 1})
    times.add_columns(pa.table({"decode_s": [4.0, 4.0, 4.0], "forward_s": [2.0, 1.0, 1.0]}))
    clock.append(105.0)
    with times.measure("forward"):
        clock.append(105.5)
    report = times.log()
    assert report["busy_s"] == {"decode": 12.0, "forward": 4.5}
    assert report["bottleneck"] == "forward"
    assert caplog.messages == [
        "features: 3 rows in 5.5 s, 1 images/s; "
        "decode 12.0 s (55% of 4), forward 4.5 s (82% of 1); bottleneck: forward"
    ]
