"""Trials that write their folders and train nothing, for tests of what leads them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from img2prompt import presets
from img2prompt.artifact import Artifact, Draft
from img2prompt.config.search import SearchConfig
from img2prompt.config.train import TrainConfig
from img2prompt.model.plan import layer_plan
from img2prompt.search.propose import Listed
from img2prompt.search.schedule import Rungs
from img2prompt.search.trials import TrialJob, outcome, stop
from img2prompt.storage import delete_folder
from img2prompt.train import run as train
from img2prompt.train.job import TrainInputs
from img2prompt.workspace import RunFolder, Stage

ROWS, VAL, BATCH, EPOCHS = 1000, 100, 64, 9
INPUTS = TrainInputs(
    Artifact("nowhere", Stage.SHARDS, {}, {}, {}, {"train": ROWS, "val": VAL, "test": 0})
)
HOURS = 0.5
"""Of an epoch of all rows."""


class Killed(Exception):
    """The driver dies."""


def score_of(config: TrainConfig, epoch: int) -> float:
    """Grows with epochs and rows; best with one layer of LoRA under two trained ones."""
    layers = layer_plan(7, config.plan.lora_rate, config.plan.nfz_rate)
    off = abs(len(layers.lora) - 1) + abs(len(layers.trained) - 2)
    luck = np.random.default_rng([config.seed, len(layers.lora), len(layers.trained)]).normal()
    return 0.8 - 0.02 * off - 0.2 / epoch - 0.1 * (1 - config.optim.share) + 0.001 * luck


class Runner:
    """Stands in for Tune: one trial after the other, decided by the real rungs."""

    def __init__(self, die_after: int = 10**9, failing: str = "") -> None:
        self.trained: list[tuple[str, int]] = []
        """Epochs that were trained, in order."""
        self._die_after = die_after
        self._failing = failing

    def __call__(
        self,
        config: SearchConfig,
        jobs: Mapping[str, TrialJob],
        proposals: Listed,
        rungs: Rungs,
        watch: Any,
        folder: str,
        pauses: Mapping[str, int],
    ) -> dict[str, str]:
        reasons = {}
        for number in range(1000):
            found = proposals.suggest(str(number))
            if found == Searcher.FINISHED:
                break
            name = found["name"]
            if name == self._failing:
                reasons[name] = "UserError: the loss is nan"
            else:
                self._train(jobs[name], rungs, watch, str(number), pauses.get(name, 0))
            proposals.on_trial_complete(str(number), {}, error=name in reasons)
        return reasons

    def _train(self, job: TrialJob, rungs: Rungs, watch: Any, number: str, pause: int) -> None:
        trial: Any = type("Trial", (), {"trial_id": number, "config": {"name": job.config.name}})
        rungs.on_trial_add(None, trial)
        history = list(outcome(job).epochs)
        for row in history:
            rungs.on_trial_result(None, trial, row)
        while len(history) < (pause or job.config.optim.epochs):
            history.append(self._epoch(job, len(history) + 1))
            keep(job, history)
            watch._budget.count([job])
            if rungs.on_trial_result(None, trial, history[-1]) == TrialScheduler.STOP:
                if (reason := rungs.reasons[job.config.name]) != "limit":
                    stop(job, history, reason)
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
    """A checkpoint after an epoch, as far as a search looks at it."""
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
    """15 plans of the demo tower's seven layers."""
    base = {"base.start_from": "", "base.engine.workers": 1, "base.optim.epochs": EPOCHS}
    rates = [number / 7 for number in range(4)]
    space = {"lora_rates": rates, "nfz_rates": rates, "head_widths": (0,), "searcher": "grid"}
    return presets.demo_search().replace(base | space | changes)
