"""Search lora_rate, nfz_rate and head width with Ray Tune; every trial is a real training run.

shards/ + features/ -> search/: `best.json` (one complete training config), `trials.json` (what was
tried), trials/<setting>/ (a run each). A killed search goes on where it stopped: Tune restores its
trials, and each trial's run finds its own folder.

Tune cannot see the workers that a trial's Ray Train run starts, so trials are limited to those that
fit the cluster at once; else they would wait for each other.
"""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler

from img2prompt import runtime
from img2prompt.artifact import Artifact, Draft, join, read_bytes
from img2prompt.config import SearchConfig, TrainConfig
from img2prompt.errors import UserError
from img2prompt.model.plan import LayerPlan, layer_plan
from img2prompt.model.predictor import open_tower
from img2prompt.stages import train

logger = logging.getLogger(__name__)

STAGE = "search"
BEST = "best.json"
TRIALS = "trials.json"
METRIC = "val_cosine"


@dataclass(frozen=True)
class Setting:
    """One point of the search space."""

    lora_rate: float
    nfz_rate: float
    head_width: int

    @property
    def name(self) -> str:
        return f"lora{self.lora_rate:g}-nfz{self.nfz_rate:g}-head{self.head_width}"


def run(config: SearchConfig, inputs: train.Inputs, out: str) -> Artifact:
    """Search under `out`/<name>; probes that trials start from go to `out`/runs."""
    folder = join(out, config.name)
    fingerprints = {"shards": inputs.shards.fingerprint}
    if inputs.features:
        fingerprints["features"] = inputs.features.fingerprint
    draft = Draft.open(folder, STAGE, config, fingerprints)
    if finished := draft.finished():
        return finished
    settings = choose(config, depth=open_tower(config.base.tower, config.base.seed).depth)
    logger.info("search: %d settings: %s", len(settings), ", ".join(s.name for s in settings))
    starts = _probes(config, settings, inputs, out)
    results = _tuner(config, settings, inputs, starts, folder).fit()
    rows = sorted(_rows(results, config.base.optim.epochs), key=lambda row: -row["best"])
    if not rows:
        raise UserError(f"no trial of {folder} finished an epoch: read the trials' errors above")
    best = trial_config(config, Setting(**rows[0]["setting"])).replace({"name": "best"})
    draft.write_bytes(BEST, best.to_json().encode())
    draft.write_bytes(TRIALS, json.dumps(rows, indent=2).encode())
    metrics = {"trials": len(rows), "best": rows[0]["name"], METRIC: rows[0]["best"]}
    return draft.publish(**metrics)


def choose(config: SearchConfig, depth: int) -> list[Setting]:
    """The settings to try: no overlap, no two with equal layers and width, at most `trials`."""
    distinct: dict[tuple[LayerPlan, int], Setting] = {}
    for lora, nfz, width in product(config.lora_rates, config.nfz_rates, config.head_widths):
        try:
            plan = layer_plan(depth, lora, nfz)
        except UserError:
            continue
        if plan.lora or plan.trained:  # a wholly frozen tower is the probe
            distinct.setdefault((plan, width), Setting(lora, nfz, width))
    if not distinct:
        raise UserError("lora_rates and nfz_rates leave no plan in which a layer learns")
    settings = list(distinct.values())
    chosen = np.random.default_rng(config.seed).permutation(len(settings))[: config.trials]
    return [settings[number] for number in sorted(chosen)]


def trial_config(config: SearchConfig, setting: Setting) -> TrainConfig:
    """The complete config of a trial."""
    start = config.base.start_from
    return config.base.replace(
        {
            "name": setting.name,
            "plan.lora_rate": setting.lora_rate,
            "plan.nfz_rate": setting.nfz_rate,
            "head.width": setting.head_width,
            "start_from": start and _probe_name(config, setting.head_width),
        }
    )


def _probe_name(config: SearchConfig, width: int) -> str:
    return config.probe.name if width == config.probe.head.width else f"{config.probe.name}-{width}"


def _probes(
    config: SearchConfig, settings: list[Setting], inputs: train.Inputs, out: str
) -> dict[int, Artifact]:
    """A probe for each head width that trials start from."""
    if not config.base.start_from:
        return {}
    probes = {}
    for width in sorted({setting.head_width for setting in settings}):
        name = _probe_name(config, width)
        probe = config.probe.replace({"name": name, "head.width": width})
        probes[width] = train.run(probe, inputs, join(out, "runs", name))
    return probes


def _tuner(
    config: SearchConfig,
    settings: list[Setting],
    inputs: train.Inputs,
    starts: dict[int, Artifact],
    folder: str,
) -> tune.Tuner:
    """A new search, or the one that was killed."""

    def trial(space: dict[str, Any]) -> None:
        setting = Setting(**space["setting"])
        own = train.Inputs(inputs.shards, start=starts.get(setting.head_width))
        where = join(folder, "trials", setting.name)
        train.run(trial_config(config, setting), own, where, callbacks=[TuneReportCallback()])

    trainable = tune.with_resources(trial, {"cpu": 0.01})
    storage = folder if "://" in folder else str(Path(folder).absolute())
    space = {"setting": tune.grid_search([vars(setting) for setting in settings])}
    if tune.Tuner.can_restore(join(storage, "tune")):
        logger.info("search: goes on")
        return tune.Tuner.restore(
            join(storage, "tune"), trainable, resume_errored=True, param_space=space
        )
    scheduler = ASHAScheduler(
        time_attr="epoch",
        grace_period=config.grace_epochs,
        max_t=config.base.optim.epochs,
        reduction_factor=config.reduction,
    )
    return tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode="max",
            scheduler=scheduler,
            max_concurrent_trials=concurrent_trials(config),
            trial_name_creator=lambda trial: Setting(**trial.config["setting"]).name,
            trial_dirname_creator=lambda trial: Setting(**trial.config["setting"]).name,
        ),
        run_config=tune.RunConfig(name="tune", storage_path=storage, verbose=1),
    )


def concurrent_trials(config: SearchConfig) -> int:
    """Trials whose workers all fit the cluster at once."""
    if config.concurrent:
        return config.concurrent
    there = runtime.resources()
    units = there.gpus if there.gpus >= 1 else there.cpus / 2  # half: data and drivers run too
    return max(1, int(units // train.worker_count(config.base)))


def _rows(results: tune.ResultGrid, epochs: int) -> Iterator[dict[str, Any]]:
    for result in results:
        frame = result.metrics_dataframe
        if result.error is not None:
            logger.warning("search: %s failed: %s", result.path, result.error)
        if frame is None or frame.empty or result.config is None:
            continue
        setting = Setting(**result.config["setting"])
        yield {
            "name": setting.name,
            "setting": vars(setting),
            "epochs": int(frame["epoch"].max()),
            "stopped_early": bool(frame["epoch"].max() < epochs),
            "best": float(frame[METRIC].max()),
            "seconds": float(frame["time_total_s"].max()),
        }


def summary(search: Artifact) -> list[list[object]]:
    """Rows for a table: every trial, the best first."""
    rows = json.loads(read_bytes(search.path(TRIALS)))
    return [
        [row["name"], row["best"], row["epochs"], "stopped" if row["stopped_early"] else "finished"]
        for row in rows
    ]
