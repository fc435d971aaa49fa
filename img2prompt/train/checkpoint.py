"""Checkpoints from which any number of workers can resume.

A checkpoint contains whole float32 tensors by parameter name, never one rank's part of them: the
learned tensors, AdamW's moments, and the state of the recipe, such as averaged weights. The rest is
numbers: schedule, loss scale, and the position (epoch, step). Row order and random draws are
functions of seed and position (`data/order.py`, `batches.seed_step`), so no generator's state is
saved.

Each checkpoint is one folder. `digests.json` is written last and publishes it, on a disk and on an
object store alike; a checkpoint with a file that does not match its digest is damaged.
"""

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow.fs as pafs
import safetensors.torch
from torch import Tensor

from img2prompt.errors import UserError
from img2prompt.lease import KEEPER
from img2prompt.storage import delete_folder, join, open_uri, read_bytes, write_bytes

logger = logging.getLogger(__name__)

History = list[dict[str, Any]]
"""A row an epoch: epoch, train_loss, val_cosine and rows_per_second. Where the recipe validates
several sets of weights, val_cosine is the best of them and val_cosine/NAME that of each set."""

SCORE = "val_cosine"
RAW = "raw"
"""Name of the model's own weights among the sets of weights that a recipe validates."""
WEIGHTS = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
RECIPE = "recipe.safetensors"
STATE = "state.json"
DIGESTS = "digests.json"


@dataclass(frozen=True)
class EngineState:
    """State of an engine as whole float32 tensors on the CPU, independent of ranks."""

    model: Mapping[str, Tensor]
    """Learned parameters and BatchNorm's statistics, by name."""
    optimizer: Mapping[str, Tensor]
    """AdamW's moments, as `NAME/exp_avg` and `NAME/exp_avg_sq`."""
    steps: int
    """Optimiser steps made."""
    schedule: Mapping[str, Any]
    scale: Mapping[str, Any] = field(default_factory=dict)
    """State of the float16 loss scaler; empty in other precisions."""


@dataclass(frozen=True)
class Position:
    """The progress of a run."""

    epoch: int = 0
    """Complete epochs."""
    step: int = 0
    """Global batches of the next epoch that are done."""
    loss_sum: float = 0.0
    """Sum of the losses of that epoch's rows so far, over all workers."""
    rows: int = 0
    """Rows in `loss_sum`."""
    skipped: int = 0
    """Global batches that the whole run has skipped."""
    history: History = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name of its checkpoint; names sort in the order of training."""
        return f"{self.epoch:05d}-{self.step:09d}"

    def __str__(self) -> str:
        return f"epoch {self.epoch + 1}, step {self.step + 1}"


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to resume."""

    position: Position
    engine: EngineState
    recipe: Mapping[str, Tensor] = field(default_factory=dict)
    """State of the recipe, by name; empty when it has none."""


class DamagedError(Exception):
    """A checkpoint differs from what was written."""


class CheckpointStore:
    """The checkpoints of a run: a folder on any pyarrow filesystem, one writer at a time."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def names(self) -> list[str]:
        """Return the names of published checkpoints, oldest first."""
        fs, path = open_uri(self.uri)
        selector = pafs.FileSelector(path, recursive=True, allow_not_found=True)
        files = [info.path.split("/") for info in fs.get_file_info(selector) if info.is_file]
        return sorted(parts[-2] for parts in files if parts[-1] == DIGESTS)

    def write(self, checkpoint: Checkpoint) -> None:
        """Publish a checkpoint.

        Raises:
            UserError: the disk is too small for it, or another job has taken over the run; older
                checkpoints are left as they were.
        """
        KEEPER.require(self.uri)
        folder = join(self.uri, checkpoint.position.name)
        files = _encode(checkpoint)
        delete_folder(folder)  # a damaged one of the same position
        try:
            self._require_space(sum(map(len, files.values())))
            for name, data in files.items():
                write_bytes(join(folder, name), data)
            digests = {name: _digest(data) for name, data in files.items()}
            write_bytes(join(folder, DIGESTS), json.dumps(digests, indent=2).encode())
        except UserError as error:
            delete_folder(folder)
            raise UserError(f"{error}. The last good checkpoint: {self.last()}") from error

    def last(self) -> str:
        """Return the URI of the newest published checkpoint, or "none yet", for messages."""
        return next((join(self.uri, name) for name in reversed(self.names())), "none yet")

    def _require_space(self, size: int) -> None:
        fs, path = open_uri(self.uri)
        if isinstance(fs, pafs.LocalFileSystem):
            fs.create_dir(path, recursive=True)
            if (free := shutil.disk_usage(path).free) < size:
                raise UserError(
                    f"{self.uri}: a checkpoint takes {size} bytes, and {free} are free. Free space "
                    "there and run the same command again: it resumes from the last checkpoint"
                )

    def read(self, name: str) -> Checkpoint:
        """Read a checkpoint and check every byte.

        Raises:
            DamagedError: a file is missing or differs from what was written.
        """
        try:
            digests = json.loads(read_bytes(join(self.uri, name, DIGESTS)))
            files = {file: read_bytes(join(self.uri, name, file)) for file in digests}
        except (FileNotFoundError, ValueError) as error:
            raise DamagedError(str(error)) from error
        for file, digest in digests.items():
            if _digest(files[file]) != digest:
                raise DamagedError(f"{file} has another digest than when it was written")
        if not digests.keys() >= {WEIGHTS, OPTIMIZER, STATE}:
            raise DamagedError(f"{DIGESTS} lists {sorted(digests)} only")
        return _decode(files)

    def newest(self) -> Checkpoint | None:
        """Return the newest whole checkpoint, if any; damaged ones are skipped with a warning."""
        for name in reversed(self.names()):
            try:
                return self.read(name)
            except DamagedError as error:
                logger.warning(
                    "checkpoint %s is damaged (%s): falling back to the one before it",
                    join(self.uri, name),
                    error,
                )
        return None

    def history(self) -> History:
        """Return the history in the newest checkpoint, without reading tensors."""
        for name in reversed(self.names()):
            with contextlib.suppress(FileNotFoundError, ValueError):
                return json.loads(read_bytes(join(self.uri, name, STATE)))["position"]["history"]
        return []

    def prune(self, keep: int, best: str) -> None:
        """Delete all but the newest `keep` and the one named `best`.

        Raises:
            UserError: another job has taken over the run, and may need them.
        """
        KEEPER.require(self.uri)
        for name in self.names()[:-keep]:
            if name != best:
                delete_folder(join(self.uri, name))


def score_columns(scores: Mapping[str, float]) -> dict[str, float]:
    """Return the history's columns for the scores of an epoch, by set of weights.

    SCORE is the best of them. With several sets, each has a column of its own too.
    """
    columns = {f"{SCORE}/{name}": score for name, score in scores.items()}
    return {SCORE: max(scores.values()), **(columns if len(columns) > 1 else {})}


def best_weights(row: Mapping[str, Any]) -> str:
    """Return the name of the weights with the best score of an epoch, the first of equals."""
    scores = {name: score for name, score in row.items() if name.startswith(f"{SCORE}/")}
    return max(scores, key=lambda name: scores[name]).removeprefix(f"{SCORE}/") if scores else RAW


def best_row(history: History) -> dict[str, Any]:
    """Return the row of the epoch with the best validation cosine, the first of equals."""
    return max(history, key=lambda row: row[SCORE])


def best_name(history: History) -> str:
    """Return the name of the best epoch's checkpoint; empty if no epoch is complete."""
    return Position(epoch=best_row(history)["epoch"]).name if history else ""


class Saver:
    """Writes checkpoints in a thread, one at a time, while training continues."""

    def __init__(self, store: CheckpointStore, keep: int) -> None:
        self._store = store
        self._keep = keep
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def save(self, checkpoint: Checkpoint) -> None:
        """Begin to write; first wait for the previous one, and raise its error if it failed."""
        self.wait()
        self._pending = self._pool.submit(self._write, checkpoint)

    def wait(self) -> None:
        """Wait until everything is written, and raise the error if that failed."""
        if self._pending is not None:
            self._pending.result()

    def _write(self, checkpoint: Checkpoint) -> None:
        self._store.write(checkpoint)
        self._store.prune(self._keep, best_name(checkpoint.position.history))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _encode(checkpoint: Checkpoint) -> dict[str, bytes]:
    engine = checkpoint.engine
    files = {
        WEIGHTS: safetensors.torch.save(dict(engine.model)),
        OPTIMIZER: safetensors.torch.save(dict(engine.optimizer)),
    }
    if checkpoint.recipe:
        files[RECIPE] = safetensors.torch.save(dict(checkpoint.recipe))
    numbers = {"steps": engine.steps, "schedule": engine.schedule, "scale": engine.scale}
    state = {"position": asdict(checkpoint.position), "engine": numbers}
    return files | {STATE: json.dumps(state, indent=2).encode()}


def _decode(files: Mapping[str, bytes]) -> Checkpoint:
    state = json.loads(files[STATE])
    tensors = {name: safetensors.torch.load(data) for name, data in files.items() if name != STATE}
    engine = EngineState(tensors[WEIGHTS], tensors[OPTIMIZER], **state["engine"])
    return Checkpoint(Position(**state["position"]), engine, tensors.get(RECIPE, {}))
