import contextlib
import logging
import os
import pty
import subprocess
import sys

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
        "shards: 50 of 200 rows (25%), 10 rows/s, 15 s left",
        "shards: 200 of 200 rows (100%), 20 rows/s",
    ]


def test_a_stage_without_rows_logs_no_rate(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="img2prompt")
    Progress("shards", total=0).add(0)
    assert caplog.messages == ["shards: 0 rows"]


@pytest.mark.parametrize(
    ("second", "rows", "line"),
    [
        (130.0, 8, "8 of 9 rows (89%), 0.27 rows/s, 4 s left"),
        (105.0, 8, "8 of 9 rows (89%), 1.6 rows/s, 1 s left"),
        (200.0, 9, "9 of 9 rows (100%), 0.09 rows/s"),
    ],
)
def test_slow_rates_and_short_times_are_not_rounded_to_zero(
    clock: list[float], caplog: pytest.LogCaptureFixture, second: float, rows: int, line: str
) -> None:
    caplog.set_level(logging.INFO, logger="img2prompt")
    count = Progress("predict", total=9)
    clock.append(second)
    count.add(rows)
    assert caplog.messages == [f"predict: {line}"]


def test_rows_may_have_another_name(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="img2prompt")
    count = Progress("generate", total=16, unit="pictures")
    clock.append(120.0)
    count.add(8)
    assert caplog.messages == ["generate: 8 of 16 pictures (50%), 0.4 pictures/s, 20 s left"]


TERMINAL = """
import logging, sys
from img2prompt.distributed.progress import Progress

logging.basicConfig(format="%(message)s", level="INFO")
count = Progress("shards", total=4)
count.add(1)
logging.getLogger("img2prompt").info("a line above the bar")
count.add(3)
listed = Progress("index", total=None)
listed.add(7)
del listed
logging.getLogger("img2prompt").info("the end")
"""


def test_a_terminal_shows_a_bar_below_the_log_lines() -> None:
    master, terminal = pty.openpty()
    script = subprocess.Popen(
        [sys.executable, "-c", TERMINAL], stderr=terminal, env={**os.environ, "TERM": "xterm"}
    )
    os.close(terminal)
    shown = b""
    with contextlib.suppress(OSError):  # the end of a terminal's output is an error
        while data := os.read(master, 1 << 16):
            shown += data
    os.close(master)
    assert script.wait(60) == 0
    for text in (b"4/4", b"7/?", b"a line above the bar\r\n", b"the end\r\n"):
        assert text in shown
    assert b"rows/s" not in shown, "the lines of a log"
    assert shown.endswith(b"the end\r\n")


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
        "features: 3 rows in 5.5 s, 0.55 images/s; "
        "decode 12.0 s (55% of 4), forward 4.5 s (82% of 1); bottleneck: forward"
    ]
