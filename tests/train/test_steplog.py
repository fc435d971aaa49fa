import json
import time
from pathlib import Path

import pytest
import torch

from img2prompt.storage import write_bytes
from img2prompt.train import steplog
from img2prompt.train.steplog import BOARD, LINES, StepLog, peak_of, worker_seconds


def lines_of(folder: Path, name: str = LINES) -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_a_line_has_losses_rates_and_times(tmp_path: Path) -> None:
    log = StepLog(f"file://{tmp_path}", workers=2, flop=3e9)
    log._peak = 1e12
    for loss, rows in ((0.5, 4), (0.2, 8)):
        with log.timed("data"):
            time.sleep(0.02)
        with log.timed("compute"):
            time.sleep(0.04)
        log.add(loss, rows)
    line = log.line(step=2, epoch=1)
    assert line["loss"] == pytest.approx((0.5 * 4 + 0.2 * 8) / 12)
    assert line["compute_s"] >= 0.04 > line["data_s"] >= 0.02
    assert line["step_s"] == 0
    seconds = line["worker_hours"] * 3600 / 2
    assert seconds >= 0.12
    assert line["images_per_s"] == pytest.approx(24 / seconds)
    assert line["mfu"] == pytest.approx(12 / seconds * 3e9 / 1e12)
    later = log.line(step=3, epoch=1)
    assert later["loss"] is None
    assert later["images_per_s"] == 0
    assert later["worker_hours"] > line["worker_hours"]
    log.epoch({"epoch": 1, "val_cosine": 0.5}, step=4)
    assert lines_of(tmp_path)[:2] == [line, later]
    assert lines_of(tmp_path)[2]["val_cosine"] == 0.5
    log.close()


def test_a_resumed_run_repeats_no_line(tmp_path: Path) -> None:
    first = StepLog(str(tmp_path))
    for step in (2, 4, 6):
        first.add(0.1, 8)
        first.line(step=step)
    first.close()
    second = StepLog(str(tmp_path), step=4)
    second.add(0.1, 8)
    second.line(step=6)
    second.close()
    assert [line["step"] for line in lines_of(tmp_path)] == [2, 4, 6]
    hours = [line["worker_hours"] for line in lines_of(tmp_path)]
    assert hours == sorted(hours)
    assert len(list((tmp_path / BOARD).glob("events.out.tfevents*"))) >= 1


def test_lines_go_to_files_of_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steplog, "LINES_IN_FILE", 3)
    sizes = []

    def measured(uri: str, data: bytes) -> None:
        if uri.endswith(".jsonl"):
            sizes.append(data.count(b"\n"))
        write_bytes(uri, data)

    monkeypatch.setattr(steplog, "write_bytes", measured)
    log = StepLog(str(tmp_path))
    lines = [log.line(step=step) for step in range(1, 9)]
    log.close()
    assert sizes == [1, 2, 3, 1, 2, 3, 1, 2], "the cost of a line does not grow"
    names = ["metrics.jsonl", "metrics-0001.jsonl", "metrics-0002.jsonl"]
    assert sorted(path.name for path in tmp_path.glob("*.jsonl")) == sorted(names)
    assert [line for name in names for line in lines_of(tmp_path, name)] == lines
    assert worker_seconds(str(tmp_path)) == pytest.approx(3600 * lines[-1]["worker_hours"])


@pytest.mark.parametrize("step", [0, 2, 3, 4, 6, 7, 8])
def test_a_run_resumes_in_any_of_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    monkeypatch.setattr(steplog, "LINES_IN_FILE", 3)
    first = StepLog(str(tmp_path))
    for number in range(1, 9):
        first.line(step=number)
    first.close()
    second = StepLog(str(tmp_path), step=step)
    for number in range(step + 1, 11):
        second.line(step=number)
    second.close()
    lines = steplog._lines_of(str(tmp_path))
    assert [line["step"] for line in lines] == list(range(1, 11))
    hours = [line["worker_hours"] for line in lines]
    assert hours == sorted(hours)


def test_a_long_file_of_an_earlier_version_is_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = StepLog(str(tmp_path))
    for number in range(1, 9):
        first.line(step=number)
    first.close()
    monkeypatch.setattr(steplog, "LINES_IN_FILE", 3)
    second = StepLog(str(tmp_path), step=8)
    second.line(step=9)
    second.close()
    assert [line["step"] for line in steplog._lines_of(str(tmp_path))] == list(range(1, 10))


def test_tensorboard_files_have_a_bounded_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steplog, "BOARD_BYTES", 1000)
    log = StepLog(str(tmp_path))
    for step in range(1, 13):
        log.add(float(step), 8)
        log.line(step=step)
    log.close()
    files = sorted((tmp_path / BOARD).glob("events*"))
    assert len(files) > 2
    assert max(path.stat().st_size for path in files) < 2000
    losses = [event for path in files for event in events_of(path) if event[0] == "loss"]
    assert losses == [("loss", step, float(step)) for step in range(1, 13)]


def events_of(path: Path) -> list[tuple[str, int, float]]:
    """Tag, step and value of the scalars in an event file, by its format."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    data, events = path.read_bytes(), []
    while data:  # a record: length, its checksum, event, its checksum
        length = int.from_bytes(data[:8], "little")
        assert int.from_bytes(data[8:12], "little") == masked_crc32c(data[:8])
        event = Event.FromString(data[12 : 12 + length])
        events += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
        data = data[16 + length :]
    return events


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    log = StepLog(str(tmp_path))
    log.add(0.25, 8)
    log.line(step=3)
    log.close()
    (path,) = (tmp_path / BOARD).glob("events*")
    found = {tag: (step, value) for tag, step, value in events_of(path)}
    assert found["loss"] == (3, 0.25)
    assert {"images_per_s", "worker_hours", "data_s", "compute_s", "step_s"} <= found.keys()


def test_without_a_folder_nothing_is_written(tmp_path: Path) -> None:
    log = StepLog()
    log.add(0.5, 2)
    log.epoch({"epoch": 1}, step=1)
    log.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L4", 121e12),
        ("Tesla T4", 65e12),
        ("NVIDIA GeForce RTX 4090", 0),
    ],
)
def test_peaks(name: str, peak: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_of(torch.device("cuda")) == peak
    assert peak_of(torch.device("cpu")) == 0
