"""Trials that write their folders and train nothing, for tests of searchers and schedulers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from img2prompt import presets
from img2prompt.artifact import Artifact
from img2prompt.config.search import SearchConfig
from img2prompt.config.train import TrainConfig
from img2prompt.draft import Draft
from img2prompt.model.plan import layer_plan
from img2prompt.search.propose import ListSearcher
from img2prompt.search.schedule import SearchScheduler
from img2prompt.search.trials import TrialJob, mark_stopped, read_outcome
from img2prompt.storage import delete_folder
from img2prompt.train import run as train
from img2prompt.train.job import TrainInputs
from img2prompt.workspace import RunFolder, Stage

ROWS, VAL, BATCH, EPOCHS = 1000, 100, 64, 9
INPUTS = TrainInputs(
    Artifact("nowhere", Stage.SHARDS, {}, {}, {}, {"train": ROWS, "val": VAL, "test": 0})
)
HOURS = 0.5
"""Device-hours of an epoch of all rows."""


class Killed(Exception):
    """Stands for the death of the driver."""


def score_of(config: TrainConfig, epoch: int) -> float:
    """Return a score that grows with epochs and rows; best: one LoRA layer under two trained."""
    layers = layer_plan(7, config.plan.lora_rate, config.plan.nfz_rate)
    off = abs(len(layers.lora) - 1) + abs(len(layers.trained) - 2)
    luck = np.random.default_rng([config.seed, len(layers.lora), len(layers.trained)]).normal()
    return 0.8 - 0.02 * off - 0.2 / epoch - 0.1 * (1 - config.optim.share) + 0.001 * luck


class Runner:
    """Replaces Tune: runs one trial after the other, stopped by the real scheduler."""

    def __init__(self, die_after: int = 10**9, failing: str = "") -> None:
        self.trained: list[tuple[str, int]] = []
        """Epochs that were trained, in order."""
        self._die_after = die_after
        self._failing = failing

    def __call__(
        self,
        jobs: Mapping[str, TrialJob],
        searcher: ListSearcher,
        scheduler: SearchScheduler,
        watch: Any,
        folder: str,
        *,
        max_concurrent: int,
        pauses: Mapping[str, int],
    ) -> dict[str, str]:
        failures = {}
        for number in range(1000):
            suggestion = searcher.suggest(str(number))
            if suggestion == Searcher.FINISHED:
                break
            name = suggestion["name"]
            if name == self._failing:
                failures[name] = "UserError: the loss is nan"
            else:
                self._train(jobs[name], scheduler, watch, str(number), pauses.get(name, 0))
            searcher.on_trial_complete(str(number), {}, error=name in failures)
        return failures

    def _train(
        self, job: TrialJob, scheduler: SearchScheduler, watch: Any, number: str, pause: int
    ) -> None:
        trial: Any = type("Trial", (), {"trial_id": number, "config": {"name": job.config.name}})
        scheduler.on_trial_add(None, trial)
        history = list(read_outcome(job).epochs)
        for row in history:
            scheduler.on_trial_result(None, trial, row)
        while len(history) < (pause or job.config.optim.epochs):
            history.append(self._epoch(job, len(history) + 1))
            keep(job, history)
            watch._budget.update([job])
            if scheduler.on_trial_result(None, trial, history[-1]) == TrialScheduler.STOP:
                if (reason := scheduler.reasons[job.config.name]) != "limit":
                    mark_stopped(job, history, reason)
                return
        if len(history) == job.config.optim.epochs:
            publish(job, history)

    def _epoch(self, job: TrialJob, epoch: int) -> dict[str, Any]:
        if len(self.trained) >= self._die_after:
            raise Killed
        self.trained.append((job.config.name, epoch))
        score = score_of(job.config, epoch)
        return {"epoch": epoch, "train_loss": 0.1, "val_cosine": score, "rows_per_second": 100.0}


def keep(job: TrialJob, history: list[dict[str, Any]]) -> None:
    """Write those files of a checkpoint after an epoch that a search reads."""
    folder = Path(job.folder)
    saved = folder / "ray" / "checkpoints" / f"{len(history):05d}-000000000"
    saved.mkdir(parents=True)
    (saved / "state.json").write_text(json.dumps({"position": {"history": history}}))
    (saved / "digests.json").write_text("{}")
    (folder / "config.json").write_text(job.config.to_json())
    share = job.config.optim.share
    lines = [
        {**row, "worker_hours": share * HOURS * row["epoch"], "step": row["epoch"]}
        for row in history
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def publish(job: TrialJob, history: list[dict[str, Any]]) -> None:
    draft = Draft.open(job.folder, Stage.TRAIN, job.config, {})
    draft.write_bytes(train.HISTORY, json.dumps(history).encode())
    draft.publish()
    delete_folder(RunFolder(job.folder).work)


def search_of(**changes: Any) -> SearchConfig:
    """Return a search over 15 plans of the demo tower's seven layers."""
    base = {"base.start_from": "", "base.engine.workers": 1, "base.optim.epochs": EPOCHS}
    rates = [number / 7 for number in range(4)]
    space = {"lora_rates": rates, "nfz_rates": rates, "head_widths": (0,), "searcher": "grid"}
    return presets.demo_full_search().replace(base | space | changes)
