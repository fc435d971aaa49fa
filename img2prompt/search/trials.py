"""A trial of a search: its folder, how far it came, and what it has cost.

A trial is a training run in a folder of its own, and the folders say how far a search has come:
finished and stopped trials are not run again, others go on after their last epoch.
"""

import json
from dataclasses import dataclass

from img2prompt.artifact import Artifact
from img2prompt.config.train import TrainConfig
from img2prompt.errors import UserError
from img2prompt.storage import delete_folder, exists, join, read_bytes, write_bytes
from img2prompt.train import job as train_job
from img2prompt.train import run as train
from img2prompt.train.checkpoint import History
from img2prompt.train.job import TrainInputs
from img2prompt.train.steplog import worker_seconds
from img2prompt.workspace import RunFolder, Stage

METRIC = "val_cosine"
STOPPED = "stopped.json"
"""In the folder of a trial that was stopped early: why, and its epochs."""


@dataclass(frozen=True)
class TrialJob:
    """One trial."""

    config: TrainConfig
    inputs: TrainInputs
    folder: str
    """Of its training run."""


@dataclass(frozen=True)
class TrialOutcome:
    """How far a trial has come."""

    end: str
    """`finished`, `stopped`, or `open`: it can go on."""
    epochs: History
    reason: str = ""

    @property
    def best(self) -> float | None:
        return max((row[METRIC] for row in self.epochs), default=None)


def outcome(job: TrialJob) -> TrialOutcome:
    """What the folder of a trial tells."""
    if exists(join(job.folder, STOPPED)):
        told = json.loads(read_bytes(join(job.folder, STOPPED)))
        return TrialOutcome("stopped", told["epochs"], told["reason"])
    try:
        run = Artifact.load(job.folder, Stage.TRAIN)
    except UserError:  # not begun, or not finished
        return TrialOutcome("open", train_job.checkpoints(job.folder).history())
    return TrialOutcome("finished", json.loads(read_bytes(run.path(train.HISTORY))))


def begun(job: TrialJob) -> bool:
    """Whether anything was done for a trial."""
    return exists(job.folder)


def stop(job: TrialJob, epochs: History, reason: str) -> None:
    """Note that a trial does not go on."""
    told = {"reason": reason, "epochs": epochs}
    write_bytes(join(job.folder, STOPPED), json.dumps(told, indent=2).encode())


def clear(job: TrialJob) -> None:
    """Delete the checkpoints of a trial that was stopped: nothing goes on from them."""
    if exists(join(job.folder, STOPPED)):
        delete_folder(RunFolder(job.folder).work)


def seconds(job: TrialJob) -> float:
    """What a trial has cost: seconds of its workers in their loops, start-up not counted."""
    return worker_seconds(job.folder)
