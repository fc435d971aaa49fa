"""A trial of a search: its folder, its progress and its cost.

A trial is a training run in a folder of its own. The folders are the state of a search: finished
and stopped trials are not run again, others resume after their last epoch.
"""

import json
from dataclasses import dataclass

from img2prompt.artifact import Artifact
from img2prompt.config.train import TrainConfig
from img2prompt.errors import UserError
from img2prompt.storage import delete_folder, exists, join, read_bytes, write_bytes
from img2prompt.train import job as train_job
from img2prompt.train import run as train
from img2prompt.train.checkpoint import SCORE, History
from img2prompt.train.job import TrainInputs
from img2prompt.train.steplog import worker_seconds
from img2prompt.workspace import RunFolder, Stage

METRIC = SCORE
STOPPED = "stopped.json"
"""File in the folder of a trial that was stopped early: the reason, and its epochs."""


@dataclass(frozen=True)
class TrialJob:
    """Everything that a trial needs to run."""

    config: TrainConfig
    inputs: TrainInputs
    folder: str
    """Folder of its training run."""


@dataclass(frozen=True)
class TrialOutcome:
    """Progress of a trial, and how it ended."""

    end: str
    """`finished`, `stopped`, or `open`: not started, or to be resumed."""
    epochs: History
    reason: str = ""

    @property
    def best(self) -> float | None:
        """Best validation cosine of its epochs."""
        return max((row[METRIC] for row in self.epochs), default=None)


def read_outcome(job: TrialJob) -> TrialOutcome:
    """Read the progress of a trial from its folder."""
    if exists(join(job.folder, STOPPED)):
        stopped = json.loads(read_bytes(join(job.folder, STOPPED)))
        return TrialOutcome("stopped", stopped["epochs"], stopped["reason"])
    try:
        run = Artifact.load(job.folder, Stage.TRAIN)
    except UserError:  # not started, or not finished
        return TrialOutcome("open", train_job.checkpoints(job.folder).history())
    return TrialOutcome("finished", json.loads(read_bytes(run.path(train.HISTORY))))


def is_started(job: TrialJob) -> bool:
    """Return True if the folder of a trial exists."""
    return exists(job.folder)


def mark_stopped(job: TrialJob, epochs: History, reason: str) -> None:
    """Write into the folder of a trial that it was stopped, so that it is not resumed."""
    stopped = {"reason": reason, "epochs": epochs}
    write_bytes(join(job.folder, STOPPED), json.dumps(stopped, indent=2).encode())


def delete_checkpoints_if_stopped(job: TrialJob) -> None:
    """Delete the checkpoints of a trial that was stopped, as nothing resumes from them."""
    if exists(join(job.folder, STOPPED)):
        delete_folder(RunFolder(job.folder).work)


def worker_seconds_of(job: TrialJob) -> float:
    """Return the cost of a trial: seconds of its workers in their loops, without start-up."""
    return worker_seconds(job.folder)
