import json
import sys
import time
import types
from pathlib import Path

import pytest
import torch

from img2prompt.errors import UserError
from img2prompt.train import steplog
from img2prompt.train.steplog import BOARD, LINES, StepLog, peak_of, require_mlflow


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / LINES).read_text().splitlines()]


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


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    log = StepLog(str(tmp_path))
    log.add(0.25, 8)
    log.line(step=3)
    log.close()
    (path,) = (tmp_path / BOARD).glob("events*")
    data, found = path.read_bytes(), {}
    while data:  # a record: length, its checksum, event, its checksum
        length = int.from_bytes(data[:8], "little")
        assert int.from_bytes(data[8:12], "little") == masked_crc32c(data[:8])
        event = Event.FromString(data[12 : 12 + length])
        found |= {value.tag: (event.step, value.simple_value) for value in event.summary.value}
        data = data[16 + length :]
    assert found["loss"] == (3, 0.25)
    assert {"images_per_s", "worker_hours", "data_s", "compute_s", "step_s"} <= found.keys()


def test_without_a_folder_nothing_is_written(tmp_path: Path) -> None:
    log = StepLog()
    log.add(0.5, 2)
    log.epoch({"epoch": 1}, step=1)
    log.close()
    assert list(tmp_path.iterdir()) == []


def test_mlflow_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    require_mlflow("")
    monkeypatch.setattr(steplog.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="MLflow is not installed: pip install mlflow-skinny"):
        require_mlflow("http://server:5000")


def test_mlflow_gets_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a stand-in with the functions that are called."""
    calls: list[tuple] = []
    fake = types.ModuleType("mlflow")
    fake.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    functions = ["set_tracking_uri", "set_experiment", "start_run", "log_params"]
    functions += ["log_metrics", "end_run"]
    for name in functions:

        def call(*given, name=name, **named) -> None:
            calls.append((name, given, named))

        setattr(fake, name, call)
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    settings = {"optim.lr": 0.1}
    log = StepLog(str(tmp_path), "run", mlflow="http://server:5000", settings=settings)
    log.add(0.5, 2)
    log.line(step=7, epoch=1)
    log.close()
    assert [name for name, *_ in calls] == functions
    assert calls[0][1] == ("http://server:5000",)
    assert calls[3][1] == (settings,)
    numbers, named = calls[4][1][0], calls[4][2]
    assert (numbers["loss"], numbers["epoch"], named) == (0.5, 1, {"step": 7})


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
