"""shards/ + features/ -> heads/: many heads for the price of a few.

`heads.json` lists every head, best first. Each of the best `keep` heads of a width has its own
folder with a finished run of the stage "train", equal to one trained alone: a fine-tune can start
from it, `evaluate` and `predict` accept it.

A killed run resumes after the last epoch that all heads have saved.
"""

import functools
import json
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import ray

from img2prompt.artifact import Artifact
from img2prompt.config.heads import HeadsConfig
from img2prompt.config.train import TrainConfig
from img2prompt.distributed import cluster
from img2prompt.distributed.tasks import run_bounded
from img2prompt.draft import Draft
from img2prompt.errors import UserError
from img2prompt.model.towers.base import TowerShape
from img2prompt.model.towers.build import read_shape
from img2prompt.storage import absolute, delete_folder, join, read_bytes
from img2prompt.train import preflight
from img2prompt.train import run as train
from img2prompt.train.checkpoint import SCORE, best_row
from img2prompt.train.estimate import estimate
from img2prompt.train.heads_together import HeadOutcome, train_heads
from img2prompt.train.job import TrainInputs, TrainJob, checkpoints
from img2prompt.train.preflight import FREE
from img2prompt.train.ray_callbacks import RETRIES
from img2prompt.workspace import HeadsFolder, RunFolder, Stage

logger = logging.getLogger(__name__)

TABLE = "heads.json"


def run(config: HeadsConfig, inputs: TrainInputs, out: str) -> Artifact:
    """Train all heads of the grid and publish the best.

    Raises:
        UserError: `train.run` would refuse a head, or every head fails.
    """
    base, heads = config.base, config.heads()
    shape, fingerprints = read_shape(base.tower), preflight.fingerprints(base, inputs)
    check = functools.partial(preflight.check, base, inputs, shape, fingerprints["tower"])
    free = [f"base.{name}" for name in FREE]
    draft = Draft.open(out, Stage.HEADS, config, fingerprints, check, free=free)
    if finished := draft.finished():
        return finished
    folder = HeadsFolder(draft.uri)
    drafts = {
        head.name: Draft.open(folder.head(head.name), Stage.TRAIN, head, fingerprints, free=FREE)
        for head in heads
    }
    if TABLE not in draft.receipts():
        rows = _rows(heads, _train(heads, inputs, out, shape), shape)
        draft.write_bytes(TABLE, json.dumps(rows, indent=2).encode())
    rows = table(draft.uri)
    _publish_best(rows, drafts, {head.name: head for head in heads}, config.keep)
    failed = sum(row["end"] == "failed" for row in rows)
    return draft.publish(
        heads=len(rows), failed=failed, best=rows[0]["name"], val_cosine=rows[0]["best"]
    )


def table(uri: str) -> list[dict[str, Any]]:
    """Read the rows of `heads.json` in a folder, best head first."""
    return json.loads(read_bytes(join(uri, TABLE)))


def _train(
    heads: Sequence[TrainConfig], inputs: TrainInputs, out: str, shape: TowerShape
) -> list[HeadOutcome]:
    """Train in one Ray task, which Ray retries when its process or node dies."""
    _announce(heads, inputs, shape)
    folder = HeadsFolder(absolute(out))
    jobs = [TrainJob(head, inputs, folder.head(head.name)) for head in heads]
    gpus = 1 if cluster.resources().gpus >= 1 else 0
    task = ray.remote(num_gpus=gpus, num_cpus=1 - gpus, max_retries=RETRIES)(train_heads)
    (outcomes,) = run_bounded(iter([task.remote(jobs, shape.width)]), workers=1)
    return outcomes


def _announce(heads: Sequence[TrainConfig], inputs: TrainInputs, shape: TowerShape) -> None:
    costs = [estimate(head, shape) for head in heads]
    state = sum(cost.weights + cost.gradients + cost.optimizer for cost in costs)
    logger.info(
        "heads: %d heads learn together, %.2fM parameters, %.3g GB with gradients and optimiser; "
        "%d epochs of %d rows",
        len(heads),
        sum(cost.learned for cost in costs) / 1e6,
        state / 1e9,
        heads[0].optim.epochs,
        inputs.shards.counts["train"],
    )


def _rows(
    heads: Sequence[TrainConfig], outcomes: Sequence[HeadOutcome], shape: TowerShape
) -> list[dict[str, Any]]:
    """Return the rows of heads.json, best first and failed last.

    Raises:
        UserError: all heads failed.
    """
    rows = [
        _row(head, outcome, estimate(head, shape).learned)
        for head, outcome in zip(heads, outcomes, strict=True)
    ]
    if all(row["end"] == "failed" for row in rows):
        reasons = "\n".join(f"  {row['name']}: {row['reason']}" for row in rows)
        raise UserError(f"every head failed; try lower learning rates (lrs):\n{reasons}")
    return sorted(rows, key=_rank)


def _row(head: TrainConfig, outcome: HeadOutcome, learned: int) -> dict[str, Any]:
    best = best_row(outcome.history) if outcome.history else None
    return {
        "name": head.name,
        "width": head.head.width,
        "dropout": head.head.dropout,
        "head_lr": head.optim.head_lr,
        "seed": head.seed,
        "end": "failed" if outcome.reason else "finished",
        "reason": outcome.reason,
        "best": best and best[SCORE],
        "best_epoch": best and best["epoch"],
        "learned": learned,
        "seconds": outcome.seconds,
        "epochs": outcome.history,
    }


def _rank(row: dict[str, Any]) -> float:
    return math.inf if row["end"] == "failed" else -row["best"]


def _publish_best(
    rows: Sequence[dict[str, Any]],
    drafts: Mapping[str, Draft],
    configs: Mapping[str, TrainConfig],
    keep: int,
) -> None:
    """Make the best heads of each width runs, and delete the folders of all others."""
    finished = [row for row in rows if row["end"] == "finished"]
    widths = {row["width"] for row in finished}
    best = [
        row for width in widths for row in [row for row in finished if row["width"] == width][:keep]
    ]
    for row in best:
        draft = drafts[row["name"]]
        if draft.finished() is None:
            store = checkpoints(draft.uri)
            train.publish(draft, configs[row["name"]], store, row["seconds"])
        delete_folder(RunFolder(draft.uri).work)
    for name in drafts.keys() - {row["name"] for row in best}:
        delete_folder(drafts[name].uri)
