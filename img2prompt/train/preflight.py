"""Checks before a run starts: config, inputs, cluster, and an unfinished run in its folder."""

import json
import logging
from collections.abc import Mapping

import torch

from img2prompt.artifact import CONFIG, MANIFEST, Artifact
from img2prompt.config.base import completed, differences, without
from img2prompt.config.train import TrainConfig
from img2prompt.data.order import rows_in_share
from img2prompt.data.shards import check_size
from img2prompt.distributed.placement import cluster_is_named, has_gpus
from img2prompt.draft import Draft
from img2prompt.errors import UserError
from img2prompt.model.plan import layer_plan
from img2prompt.model.precision import compute_dtype
from img2prompt.model.prompt_model import build_prompt_model, load_head, load_learned_state
from img2prompt.model.towers.base import TowerShape
from img2prompt.model.towers.build import checkpoint_stamp, open_tower
from img2prompt.model.towers.weights import FRESH, STAMP
from img2prompt.storage import exists, join, read_bytes, write_bytes
from img2prompt.train.batches import check_batch, total_steps
from img2prompt.train.checkpoint import CheckpointStore
from img2prompt.train.job import TrainInputs, build_model
from img2prompt.train.mlflow_copy import require_mlflow
from img2prompt.workspace import Stage

logger = logging.getLogger(__name__)

CHANGES = "changes/"
"""Folder of a run's replaced configs, numbered, with the differences."""

DOWNLOAD = ("download",)
"""Settings of a tower that do not say which tower it is."""

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
"""Settings that do not affect the result: a run may resume with other values."""


def fingerprints(config: TrainConfig, inputs: TrainInputs) -> dict[str, str]:
    """Return the fingerprints of a run's inputs, by name."""
    prints = {"tower": _tower_fingerprint(config, inputs), "shards": inputs.shards.fingerprint}
    if inputs.features is not None and config.plan.frozen_tower:
        prints["features"] = inputs.features.fingerprint
    if inputs.start is not None:
        prints["start"] = inputs.start.fingerprint
    return prints


def _tower_fingerprint(config: TrainConfig, inputs: TrainInputs) -> str:
    """Return the fingerprint of the tower's weights.

    Cached features have that of the tower which made them, so a probe with the same settings and
    unchanged files does not load it. A fresh tower also depends on the seed, which features do not
    record.
    """
    features = inputs.features
    if features is not None and config.plan.frozen_tower and config.tower.weights != FRESH:
        settings = json.loads(config.tower.to_json())
        same = without(features.config["tower"], DOWNLOAD) == without(settings, DOWNLOAD)
        if same and _stamp_of(features) == checkpoint_stamp(config.tower):
            return features.inputs["tower"]
    return open_tower(config.tower, config.seed).base_fingerprint


def _stamp_of(features: Artifact) -> str:
    """Return the stamp of the checkpoint that made the features; empty if it was not saved."""
    if STAMP not in features.files:
        return ""
    return json.loads(read_bytes(features.path(STAMP)))["stamp"]


def worker_count(config: TrainConfig) -> int:
    """Return the most workers of a run: configured, or one per GPU, or two on CPUs.

    Plain torch always has one.
    """
    if config.engine.kind == "plain":
        return 1
    from img2prompt.distributed import cluster  # imports Ray, which a run in this process needs not

    automatic = int(cluster.resources().gpus) or 2
    return config.engine.workers or max(automatic, config.engine.min_workers)


def check(config: TrainConfig, inputs: TrainInputs, shape: TowerShape, tower: str) -> None:
    """Raise a UserError for a run that cannot be trained with these inputs on this cluster.

    `shape` and `tower` are the shape of its tower and the fingerprint of its weights.
    """
    layer_plan(shape.depth, config.plan.lora_rate, config.plan.nfz_rate)
    _check_groups(inputs) if config.optim.solver == "ridge" else _check_steps(config, inputs)
    if config.plan.frozen_tower and inputs.features is None:
        raise UserError(f"{config.name} is a probe and reads features: run the features job first")
    if config.recipe.flip_guard:
        _check_prompts(inputs)
    for made in filter(None, [inputs.features, inputs.start]):
        made.require_input("shards", inputs.shards)
    if inputs.start and inputs.start.inputs["tower"] != tower:
        raise UserError(
            f"{inputs.start.uri} is a head for another tower than {config.tower.weights!r}: "
            "train a probe with the same --tower settings"
        )
    if inputs.features and inputs.features.inputs["tower"] != tower:
        raise UserError(
            f"{inputs.features.uri} was made by another tower than {config.tower.weights!r}: "
            "make features with the same --tower settings, in another --out"
        )
    check_size(inputs.shards, shape.size)
    if inputs.start is not None:
        head = build_prompt_model(None, shape.width, config.plan, config.head, config.seed)
        load_head(head, inputs.start)


def _check_steps(config: TrainConfig, inputs: TrainInputs) -> None:
    """Check workers and batches of a run that learns in steps."""
    workers = worker_count(config)
    if config.engine.kind != "plain" or cluster_is_named():
        _require_room(config.engine.min_workers or workers)
    check_batch(config, workers)
    require_mlflow(config.engine.mlflow)
    if not has_gpus():
        compute_dtype(config.engine.precision, torch.device("cpu"))
    total_steps(config, rows_in_share(inputs.shards.counts["train"], config.optim.share))


def _require_room(workers: int) -> None:
    """Check that the cluster has room for the workers; one always fits on this machine."""
    from img2prompt.distributed import cluster

    cluster.require(gpus=workers) if has_gpus() else cluster.require(cpus=workers)


def _check_groups(inputs: TrainInputs) -> None:
    """Check that a probe in closed form has the similarity groups of its shards."""
    if inputs.groups is None:
        raise UserError("optim.solver ridge holds out similarity groups: give the groups folder")
    inputs.shards.require_input("groups", inputs.groups)


def _check_prompts(inputs: TrainInputs) -> None:
    """Check that the prompts of the shards can be read."""
    if inputs.targets is None:
        raise UserError("recipe.flip_guard reads the prompts: give the targets folder")
    inputs.shards.require_input("targets", inputs.targets)


def check_resumable(
    config: TrainConfig, inputs: TrainInputs, out: str, store: CheckpointStore
) -> None:
    """Raise a UserError if model, batches or recipe differ from those of the run in `out`."""
    last = store.newest()
    if last is None:
        return
    saved = TrainConfig.from_json(read_bytes(join(out, CONFIG)).decode(), where=join(out, CONFIG))
    size, recipe = saved.optim.batch_size, saved.recipe
    if config.optim.batch_size != size:
        raise UserError(
            f"optim.batch_size is {config.optim.batch_size}; allowed for the run in {out}: {size}, "
            "as it counts its position in batches"
        )
    if config.recipe != recipe:
        raise UserError(
            f"recipe is {config.recipe}; allowed for the run in {out}: {recipe}, as its "
            "checkpoints contain the state of that recipe"
        )
    load_learned_state(build_model(config, inputs), dict(last.engine.model), store.uri)


def adopt_config(config: TrainConfig, made_from: Mapping[str, str], out: str) -> None:
    """Give the unfinished run in `out` this config if nothing else differs; CHANGES keeps the old.

    `Draft.open` refuses any other difference.
    """
    if not exists(join(out, MANIFEST)):
        return
    manifest = json.loads(read_bytes(join(out, MANIFEST)))
    new = without(json.loads(config.to_json()), FREE)
    lines = differences(without(completed(TrainConfig, manifest["config"]), FREE), new, "config")
    if manifest["done"] or not lines:
        return
    if (manifest["stage"], manifest["inputs"]) != (Stage.TRAIN, made_from):
        return
    draft = Draft(out, Stage.TRAIN, new, made_from)
    draft.hold()
    before = json.loads(read_bytes(join(out, CONFIG)))
    if without(before, FREE) != new:  # equal if an earlier call was killed between these writes
        number = sum(name.startswith(CHANGES) for name in draft.receipts())
        change = json.dumps({"config": before, "differences": lines}, indent=2)
        draft.write_bytes(f"{CHANGES}{number:03d}.json", change.encode(), rows=0)
    write_bytes(join(out, CONFIG), config.to_json().encode())
    write_bytes(join(out, MANIFEST), json.dumps(manifest | {"config": new}, indent=2).encode())
    logger.warning("%s resumes with a changed config:\n  %s", out, "\n  ".join(lines))
