import json
import logging
import posixpath
import shutil
import threading
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from img2prompt.errors import UserError
from img2prompt.holder import this_process
from img2prompt.lease import KEEPER, WORKER
from img2prompt.storage import exists, join, write_bytes
from img2prompt.train import checkpoint as checkpoints
from img2prompt.train.checkpoint import (
    DIGESTS,
    OPTIMIZER,
    RECIPE,
    STATE,
    Checkpoint,
    CheckpointStore,
    DamagedError,
    EngineState,
    Position,
    Saver,
    best_name,
    best_row,
)
from img2prompt.train.steplog import LINES, StepLog

COSINES = (0.4, 0.7, 0.6, 0.7)


def point(epoch: int, step: int = 0, recipe: bool = False) -> Checkpoint:
    """A checkpoint whose numbers encode its position."""
    tensors = {"head.weight": torch.full((3, 2), epoch + step / 8), "head.bias": torch.arange(4.0)}
    moments = {f"{name}/exp_avg": -tensor for name, tensor in tensors.items()}
    history = [{"epoch": n + 1, "val_cosine": COSINES[n]} for n in range(epoch)]
    position = Position(epoch, step, loss_sum=0.1 + step, rows=7 * step, history=history)
    engine = EngineState(tensors, moments, 9 * epoch + step, {"last_epoch": step}, {"scale": 8.0})
    return Checkpoint(
        position, engine, {"ema/weights/head.bias": torch.ones(4) / 3} if recipe else {}
    )


def equal(found: Checkpoint, expected: Checkpoint) -> bool:
    ours = [found.engine.model, found.engine.optimizer, found.recipe]
    theirs = [expected.engine.model, expected.engine.optimizer, expected.recipe]
    tensors = all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        for a, b in zip(ours, theirs, strict=True)
    )
    numbers = [(c.position, c.engine.steps, c.engine.schedule) for c in (found, expected)]
    return tensors and numbers[0] == numbers[1] and found.engine.scale == expected.engine.scale


@pytest.fixture(params=["path", "uri"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> CheckpointStore:
    prefix = "file://" if request.param == "uri" else ""
    return CheckpointStore(f"{prefix}{tmp_path}/run/checkpoints")


def test_a_checkpoint_is_read_as_it_was_written(store: CheckpointStore) -> None:
    assert store.names() == []
    assert store.newest() is None
    for written in (point(0, 3), point(1, recipe=True), point(1, 2)):
        store.write(written)
        newest = store.newest()
        assert newest is not None
        assert equal(newest, written)
    assert store.names() == ["00000-000000003", "00001-000000000", "00001-000000002"]
    assert exists(join(store.uri, "00001-000000000", RECIPE))
    assert not exists(join(store.uri, "00001-000000002", RECIPE))


def test_names_sort_in_the_order_of_training() -> None:
    places = [(0, 5), (0, 40), (0, 123456), (1, 0), (2, 0), (10, 0), (10, 3)]
    names = [Position(epoch, step).name for epoch, step in places]
    assert names == sorted(names)


def damage(store: CheckpointStore, name: str, file: str, how: str) -> None:
    path = Path(store.uri.removeprefix("file://")) / name / file
    data = path.read_bytes()
    if how == "flipped":
        data = data[:-1] + bytes([data[-1] ^ 1])
    path.unlink() if how == "lost" else path.write_bytes(data[:-5] if how == "cut" else data)


@pytest.mark.parametrize("how", ["cut", "flipped", "lost"])
@pytest.mark.parametrize("file", ["model.safetensors", OPTIMIZER, STATE])
def test_a_damaged_checkpoint_is_skipped_with_a_warning(
    store: CheckpointStore, file: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    store.write(point(1))
    store.write(point(1, 4))
    damage(store, "00001-000000004", file, how)
    with pytest.raises(DamagedError):
        store.read("00001-000000004")
    with caplog.at_level(logging.WARNING):
        found = store.newest()
    assert found is not None
    assert found.position.name == "00001-000000000"
    (warning,) = caplog.messages
    assert f"{store.uri}/00001-000000004 is damaged" in warning
    assert file in warning
    assert "the one before" in warning
    store.write(point(1, 4))  # the run reached this position again
    newest = store.newest()
    assert newest is not None
    assert equal(newest, point(1, 4))


def test_damaged_digests_leave_no_checkpoint(store: CheckpointStore) -> None:
    store.write(point(1))
    write_bytes(join(store.uri, "00001-000000000", DIGESTS), b'{"half": ')
    assert store.newest() is None
    write_bytes(join(store.uri, "00001-000000000", DIGESTS), b"{}")
    with pytest.raises(DamagedError, match="lists"):
        store.read("00001-000000000")


def test_a_folder_without_digests_is_no_checkpoint(store: CheckpointStore) -> None:
    write_bytes(join(store.uri, "00003-000000000", STATE), b"{}")
    assert store.names() == []
    assert store.newest() is None


def test_the_newest_and_the_best_are_kept(store: CheckpointStore) -> None:
    saver = Saver(store, keep=2)
    for written in (point(1), point(1, 2), point(2), point(2, 2), point(3), point(3, 2), point(4)):
        saver.save(written)
    saver.wait()
    names = [Position(*place).name for place in ((2, 0), (3, 2), (4, 0))]
    assert store.names() == names  # epoch 2 is the first with the best cosine
    assert best_name(point(4).position.history) == names[0]
    assert best_row(point(4).position.history)["epoch"] == 2
    assert best_name([]) == ""


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A disk that accepts this many more files."""
    room = [99]

    def write(uri: str, data: bytes) -> None:
        if room[0] == 0:
            raise UserError(f"{uri}: no room for {len(data)} bytes")
        room[0] -= 1
        write_bytes(uri, data)

    monkeypatch.setattr(checkpoints, "write_bytes", write)
    return room


@pytest.mark.parametrize("files", [0, 1, 2, 3])
def test_a_disk_that_gets_full_leaves_the_checkpoints_as_they_were(
    store: CheckpointStore, full_disk: list[int], files: int
) -> None:
    store.write(point(1))
    full_disk[0] = files
    saver = Saver(store, keep=1)
    saver.save(point(2))
    with pytest.raises(UserError, match=r"no room .*The last good checkpoint: .*00001-000000000"):
        saver.wait()
    assert store.names() == ["00001-000000000"]
    assert not exists(join(store.uri, "00002-000000000"))
    full_disk[0] = 99
    store.write(point(2))
    assert store.names()[-1] == "00002-000000000"


def test_space_is_checked_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(str(tmp_path / "checkpoints"))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda _: usage._replace(free=400))
    with pytest.raises(UserError, match=r"takes \d+ bytes, and 400 are free.*none yet"):
        store.write(point(1))
    assert not (tmp_path / "checkpoints" / "00001-000000000").exists()


@pytest.mark.parametrize("is_worker", [False, True])
def test_a_run_that_another_job_has_taken_over_is_left_alone(
    is_worker: bool, store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = posixpath.dirname(store.uri)
    lease = KEEPER.hold(folder)
    assert lease is not None
    for epoch in (1, 2):
        store.write(point(epoch))
    if is_worker:
        monkeypatch.setenv(WORKER, KEEPER.token)
        store.write(point(2, 1))
    names = store.names()
    write_bytes(lease.path, json.dumps({**asdict(this_process()), "token": "other"}).encode())
    lease.renew()  # a worker need not wait until its driver has noticed
    log = StepLog(folder)
    for write in (
        lambda: store.write(point(3)),
        lambda: store.write(point(1)),
        lambda: store.prune(1, ""),
        lambda: log.line(step=1),
    ):
        with pytest.raises(UserError, match="has another writer"):
            write()
    log.close()
    assert store.names() == names
    assert not exists(join(folder, LINES))
    KEEPER.end(folder)


def test_writing_continues_in_the_background(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, resume_writing = threading.Event(), threading.Event()
    write = store.write

    def slow(checkpoint: Checkpoint) -> None:
        begun.set()
        assert resume_writing.wait(20)
        write(checkpoint)

    monkeypatch.setattr(store, "write", slow)
    saver = Saver(store, keep=3)
    saver.save(point(1))  # returns while the disk works
    assert begun.wait(20)
    assert store.names() == []
    resume_writing.set()
    saver.save(point(1, 1))  # waits for the first
    assert "00001-000000000" in store.names()
    saver.wait()
    assert len(store.names()) == 2


def test_a_checkpoint_is_plain_files(store: CheckpointStore) -> None:
    from safetensors.numpy import load_file

    store.write(point(2, 1, recipe=True))
    folder = Path(store.uri.removeprefix("file://")) / "00002-000000001"
    assert load_file(folder / "model.safetensors")["head.weight"].tolist() == [[2.125] * 2] * 3
    assert load_file(folder / OPTIMIZER)["head.bias/exp_avg"].tolist() == [0, -1, -2, -3]
    state = json.loads((folder / STATE).read_text())
    assert state["position"]["rows"] == 7
    assert state["engine"]["schedule"] == {"last_epoch": 1}
