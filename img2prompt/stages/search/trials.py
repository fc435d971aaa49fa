"""A trial of a search: its folder, how far it came, and what it has cost.

A trial is a training run in a folder of its own, and the folders say how far a search has come:
finished and stopped trials are not run again, others go on after their last epoch.
"""

import json
from dataclasses import dataclass

from img2prompt.artifact import Artifact
from img2prompt.config import TrainConfig
from img2prompt.errors import UserError
from img2prompt.stages import train
from img2prompt.stages.checkpoint import History
from img2prompt.stages.steplog import worker_seconds
from img2prompt.storage import delete_folder, exists, join, read_bytes, write_bytes

METRIC = "val_cosine"
STOPPED = "stopped.json"
"""In the folder of a trial that was stopped early: why, and its epochs."""


@dataclass(frozen=True)
class Job:
    """One trial."""

    config: TrainConfig
    inputs: train.Inputs
    folder: str
    """Of its training run."""


@dataclass(frozen=True)
class Outcome:
    """How far a trial has come."""

    end: str
    """`finished`, `stopped`, or `open`: it can go on."""
    epochs: History
    reason: str = ""

    @property
    def best(self) -> float | None:
        return max((row[METRIC] for row in self.epochs), default=None)


def outcome(job: Job) -> Outcome:
    """What the folder of a trial tells."""
    if exists(join(job.folder, STOPPED)):
        told = json.loads(read_bytes(join(job.folder, STOPPED)))
        return Outcome("stopped", told["epochs"], told["reason"])
    try:
        run = Artifact.load(job.folder, train.STAGE)
    except UserError:  # not begun, or not finished
        return Outcome("open", train.checkpoints(job.folder).history())
    return Outcome("finished", json.loads(read_bytes(run.path(train.HISTORY))))


def begun(job: Job) -> bool:
    """Whether anything was done for a trial."""
    return exists(job.folder)


def stop(job: Job, epochs: History, reason: str) -> None:
    """Note that a trial does not go on."""
    told = {"reason": reason, "epochs": epochs}
    write_bytes(join(job.folder, STOPPED), json.dumps(told, indent=2).encode())


def clear(job: Job) -> None:
    """Delete the checkpoints of a trial that was stopped: nothing goes on from them."""
    if exists(join(job.folder, STOPPED)):
        delete_folder(train.storage(job.folder))


def seconds(job: Job) -> float:
    """What a trial has cost: seconds of its workers in their loops, start-up not counted."""
    return worker_seconds(job.folder)
