"""What must be right before a run starts: config, inputs, cluster, what an earlier start left."""

import json
import logging
from collections.abc import Mapping

import torch

from img2prompt.artifact import CONFIG, MANIFEST, Draft
from img2prompt.config.base import differences, without
from img2prompt.config.train import TrainConfig
from img2prompt.data.order import rows_in_share
from img2prompt.data.shards import check_size
from img2prompt.distributed import cluster
from img2prompt.errors import UserError
from img2prompt.model.plan import layer_plan
from img2prompt.model.precision import compute_dtype
from img2prompt.model.prompt_model import build_prompt_model, load_head, load_learned_state
from img2prompt.model.towers.clip import Tower
from img2prompt.storage import exists, join, read_bytes, write_bytes
from img2prompt.train.batches import check_batch, total_steps
from img2prompt.train.checkpoint import CheckpointStore
from img2prompt.train.job import TrainInputs, build_model
from img2prompt.train.steplog import require_mlflow
from img2prompt.workspace import Stage

logger = logging.getLogger(__name__)

CHANGES = "changes/"
"""Each config that a run went on without, numbered, with what was changed."""

FREE = (
    "engine.workers",
    "engine.min_workers",
    "engine.resize_seconds",
    "engine.save_every",
    "engine.save_seconds",
    "engine.keep",
    "engine.skip_nonfinite",
    "engine.hang_timeout",
    "engine.mlflow",
)
"""Settings that say how a run is made and not what comes out: a run may go on with them changed."""


def fingerprints(config: TrainConfig, inputs: TrainInputs, tower: Tower) -> dict[str, str]:
    """Of what a run is made from, by name."""
    found = {"tower": tower.base_fingerprint, "shards": inputs.shards.fingerprint}
    if inputs.features is not None and config.plan.frozen_tower:
        found["features"] = inputs.features.fingerprint
    if inputs.start is not None:
        found["start"] = inputs.start.fingerprint
    return found


def worker_count(config: TrainConfig) -> int:
    """Most workers of a run: as configured, else one per GPU, or two on CPUs (plain torch: one)."""
    gpus = int(cluster.resources().gpus)
    automatic = 1 if config.engine.kind == "plain" else gpus or 2
    return config.engine.workers or max(automatic, config.engine.min_workers)


def has_gpus() -> bool:
    return cluster.resources().gpus >= 1


def check(config: TrainConfig, inputs: TrainInputs, tower: Tower) -> None:
    """Refuse (UserError) what could not be trained here."""
    layer_plan(tower.depth, config.plan.lora_rate, config.plan.nfz_rate)
    workers = worker_count(config)
    least = config.engine.min_workers or workers
    cluster.require(gpus=least) if has_gpus() else cluster.require(cpus=least)
    check_batch(config, workers)
    require_mlflow(config.engine.mlflow)
    if not has_gpus():
        compute_dtype(config.engine.precision, torch.device("cpu"))
    if config.plan.frozen_tower and inputs.features is None:
        raise UserError(f"{config.name} is a probe and reads features: run the features job first")
    for made in filter(None, [inputs.features, inputs.start]):
        made.require_input("shards", inputs.shards)
    if inputs.start and inputs.start.inputs["tower"] != tower.base_fingerprint:
        raise UserError(
            f"{inputs.start.uri} is a head for another tower than {config.tower.weights!r}: "
            "train a probe with the same --tower settings"
        )
    if inputs.features and inputs.features.inputs["tower"] != tower.base_fingerprint:
        raise UserError(
            f"{inputs.features.uri} was made by another tower than {config.tower.weights!r}: "
            "make features with the same --tower settings, in another --out"
        )
    check_size(inputs.shards, tower.size)
    total_steps(config, rows_in_share(inputs.shards.counts["train"], config.optim.share))
    if inputs.start is not None:
        head = build_prompt_model(None, tower.width, config.plan, config.head, config.seed)
        load_head(head, inputs.start)


def check_resumable(
    config: TrainConfig, inputs: TrainInputs, out: str, store: CheckpointStore
) -> None:
    """Refuse (UserError) a config whose model or batches are not those of the run in `out`."""
    last = store.newest()
    if last is None:
        return
    size = json.loads(read_bytes(join(out, CONFIG)))["optim"]["batch_size"]
    if config.optim.batch_size != size:
        raise UserError(
            f"optim.batch_size is {config.optim.batch_size}; allowed for the run in {out}: {size}, "
            "as it counts its position in batches"
        )
    load_learned_state(build_model(config, inputs), dict(last.engine.model), store.uri)


def adopt(config: TrainConfig, made_from: Mapping[str, str], out: str) -> None:
    """Give the unfinished run in `out` this config, if only that differs; CHANGES keeps the other.

    All else that differs is for `Draft.open` to refuse.
    """
    if not exists(join(out, MANIFEST)):
        return
    found = json.loads(read_bytes(join(out, MANIFEST)))
    asked = without(json.loads(config.to_json()), FREE)
    lines = differences(without(found["config"], FREE), asked, "config")
    if found["done"] or not lines or (found["stage"], found["inputs"]) != (Stage.TRAIN, made_from):
        return
    draft = Draft(out, Stage.TRAIN, asked, made_from)
    before = json.loads(read_bytes(join(out, CONFIG)))
    if without(before, FREE) != asked:  # else a kill came between the next three
        number = sum(name.startswith(CHANGES) for name in draft.receipts())
        change = json.dumps({"config": before, "differences": lines}, indent=2)
        draft.write_bytes(f"{CHANGES}{number:03d}.json", change.encode(), rows=0)
    write_bytes(join(out, CONFIG), config.to_json().encode())
    write_bytes(join(out, MANIFEST), json.dumps(found | {"config": asked}, indent=2).encode())
    logger.warning("%s goes on with a changed config:\n  %s", out, "\n  ".join(lines))
