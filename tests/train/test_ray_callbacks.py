"""Callbacks that limit deaths and save before a resize; no cluster."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayActorError

from img2prompt.errors import UserError
from img2prompt.storage import write_bytes
from img2prompt.train import ray_callbacks
from img2prompt.train.checkpoint import CheckpointStore, Position
from img2prompt.train.health import end_and_wait, note_sigterm
from img2prompt.train.ray_callbacks import RETRIES, LimitDeaths, SaveBeforeResize


def test_a_run_whose_workers_die_without_progress_fails(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path))
    callback = LimitDeaths(store)
    for step in range(3):
        for _ in range(RETRIES):
            callback.after_exception(None, {1: RuntimeError("out of memory")})
        write_bytes(str(tmp_path / Position(step=step).name / "digests.json"), b"{}")
    for _ in range(RETRIES):
        callback.after_exception(None, {1: RuntimeError("out of memory")})
    message = (
        rf"died {RETRIES + 1} times without a new checkpoint .*{Position(step=2).name}\).*memory"
    )
    with pytest.raises(UserError, match=message):
        callback.after_exception(None, {1: RuntimeError("out of memory")})


class Group:
    """A worker group that records the functions it executes."""

    def __init__(self, dead: bool = False) -> None:
        self.executed: list[Callable[..., Any]] = []
        self._dead = dead

    def execute(self, function: Callable[..., Any], *_: Any) -> None:
        self.executed.append(function)
        if self._dead and function is end_and_wait:
            raise RayActorError


@pytest.mark.parametrize("dead", [False, True])
def test_workers_save_before_their_number_changes(
    dead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_callbacks, "is_resizing", lambda state: state == "resizing")
    callback, group = SaveBeforeResize(), Group(dead)
    callback.after_worker_group_start(group)
    callback.after_controller_state_update("running", "running")
    assert group.executed == [note_sigterm]
    callback.after_controller_state_update("running", "resizing")
    assert group.executed == [note_sigterm, end_and_wait]
