"""Search lora_rate, nfz_rate and head width with Ray Tune; every trial is a real training run.

shards/ + features/ -> search/: `best.json` (one complete training config), `trials.json` (what was
tried, epoch by epoch), trials/<setting>/ (a run each). A killed search goes on from its trials.
"""

import functools
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np

from img2prompt.artifact import Artifact, Draft
from img2prompt.config import SearchConfig, TrainConfig
from img2prompt.data.order import steps_per_epoch
from img2prompt.errors import UserError
from img2prompt.model.plan import LayerPlan, layer_plan
from img2prompt.model.predictor import open_tower
from img2prompt.model.tower import Tower
from img2prompt.stages import train, trials
from img2prompt.stages.checkpoint import History
from img2prompt.stages.steplog import worker_seconds
from img2prompt.stages.trials import METRIC
from img2prompt.storage import join, read_bytes

logger = logging.getLogger(__name__)

STAGE = "search"
BEST = "best.json"
TRIALS = "trials.json"


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
    """Search under `out`/<name>; probes that trials start from go to `out`/runs.

    Raises UserError when no setting leaves a layer to learn, when the cluster is too small for one
    trial, and when every trial fails.
    """
    folder = join(out, config.name)
    tower = open_tower(config.base.tower, config.base.seed)
    settings = choose(config, tower.depth)
    fingerprints = {"tower": tower.base_fingerprint, "shards": inputs.shards.fingerprint}
    if inputs.features:
        fingerprints["features"] = inputs.features.fingerprint
    check = functools.partial(trials.require_room, config)
    draft = Draft.open(folder, STAGE, config, fingerprints, check)
    if finished := draft.finished():
        return finished
    logger.info("search: %d settings: %s", len(settings), ", ".join(s.name for s in settings))
    starts = _probes(config, settings, inputs, out)
    jobs = {}
    for setting in settings:
        own = train.Inputs(inputs.shards, start=starts.get(setting.head_width))
        where = join(folder, "trials", setting.name)
        jobs[setting.name] = trials.Job(trial_config(config, setting), own, where)
    reasons = trials.run(config, jobs, folder)
    rows = [
        _row(jobs[s.name], s, tower, trials.ended(jobs[s.name].folder), reasons.get(s.name, ""))
        for s in settings
    ]
    return _publish(config, draft, sorted(rows, key=_rank))


def _row(
    job: trials.Job, setting: Setting, tower: Tower, history: History, reason: str
) -> dict[str, Any]:
    """What trials.json says of a trial.

    `flop` is that of a row, forward and backward, `memory` in bytes of a worker. `rows` counts the
    pictures that were passed through the model in training, `seconds` those of all workers in their
    loops.
    """
    config, early = job.config, "stopped" if history else "failed"
    a_row, workers = train.estimate(config, tower), train.worker_count(config)
    steps = steps_per_epoch(job.inputs.shards.counts["train"], config.optim.batch_size)
    return {
        "name": setting.name,
        "setting": vars(setting),
        "seed": config.seed,
        "plan": asdict(layer_plan(tower.depth, setting.lora_rate, setting.nfz_rate)),
        "learned": a_row.learned,
        "flop": a_row.forward + a_row.backward,
        "memory": sum(a_row.memory(*train.share_of_memory(config, workers)).values()),
        "rows": len(history) * steps * config.optim.batch_size,
        "seconds": worker_seconds(job.folder),
        "end": "finished" if len(history) == config.optim.epochs else early,
        "reason": reason,
        "best": max((row[METRIC] for row in history), default=None),
        "epochs": history,
    }


def _rank(row: Mapping[str, Any]) -> float:
    """The best first, the failed last."""
    return np.inf if row["best"] is None else -row["best"]


def _publish(config: SearchConfig, draft: Draft, rows: list[dict[str, Any]]) -> Artifact:
    failed = [row for row in rows if row["end"] == "failed"]
    if len(failed) == len(rows):
        told = "\n".join(f"  {row['name']}: {row['reason']}" for row in rows)
        raise UserError(f"every trial of {draft.uri} failed; run it again to retry them:\n{told}")
    best = trial_config(config, Setting(**rows[0]["setting"])).replace({"name": "best"})
    draft.write_bytes(BEST, best.to_json().encode())
    draft.write_bytes(TRIALS, json.dumps(rows, indent=2).encode())
    counts = {"trials": len(rows), "failed": len(failed), "best": rows[0]["name"]}
    return draft.publish(**counts, **{METRIC: rows[0]["best"]})


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


def summary(search: Artifact) -> list[list[object]]:
    """Rows for a table: every trial, the best first."""
    return [
        [
            row["name"],
            "" if row["best"] is None else row["best"],
            len(row["epochs"]),
            f"failed: {row['reason']}" if row["end"] == "failed" else row["end"],
        ]
        for row in json.loads(read_bytes(search.path(TRIALS)))
    ]
