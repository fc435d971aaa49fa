"""A training job: its inputs, the message to its workers, and its folders."""

from dataclasses import dataclass

import numpy as np

from img2prompt.artifact import Artifact
from img2prompt.config.train import TrainConfig
from img2prompt.data.order import first_rows
from img2prompt.data.shards import FeatureRows, ShardRows
from img2prompt.data.text.sides import mentions_side
from img2prompt.model.prompt_model import PromptModel, build_prompt_model, load_head
from img2prompt.model.towers.build import open_tower, read_shape
from img2prompt.train.batches import Rows, RowSubset
from img2prompt.train.checkpoint import CheckpointStore
from img2prompt.train.prompt_rows import OnePerPrompt, prompt_labels
from img2prompt.workspace import RunFolder


@dataclass(frozen=True)
class TrainInputs:
    """Artifacts that a run reads."""

    shards: Artifact
    features: Artifact | None = None
    """Cached features: needed by a probe, unused by a fine-tune."""
    start: Artifact | None = None
    """Finished run whose head this run starts from."""
    groups: Artifact | None = None
    """Similarity groups of the prompts: needed by a probe in closed form."""
    targets: Artifact | None = None
    """Prompts of the pictures: needed by `recipe.flip_guard`."""


@dataclass(frozen=True)
class TrainJob:
    """The message to all workers of a run."""

    config: TrainConfig
    inputs: TrainInputs
    out: str
    """Folder of the run, absolute."""
    until: int = 0
    """Epochs after which to pause; 0: none."""
    at_once: int = 1
    """Runs that share each machine, this one among them: each takes its part of the cores."""


def open_rows(config: TrainConfig, inputs: TrainInputs, split: str, threads: int = 1) -> Rows:
    """Open a split: cached features for a probe, else pictures, decoded in `threads` threads.

    Training rows are limited to the config's `optim.share`.
    """
    if config.plan.frozen_tower:
        assert inputs.features is not None
        rows: Rows = FeatureRows(inputs.features, inputs.shards, split)
    else:
        rows = ShardRows(inputs.shards, split, threads)
    return training_rows(config, inputs, rows) if split == "train" else rows


def training_rows(config: TrainConfig, inputs: TrainInputs, rows: Rows) -> Rows:
    """Return the config's share of the training rows, with one picture of a prompt if it says so.

    Both together draw from the pictures of the share.
    """
    numbers = np.arange(len(rows))
    if config.optim.share < 1:
        numbers = first_rows(rows.group_sizes, config.optim.share, config.seed)
        rows = RowSubset(rows, numbers)
    if config.recipe.one_per_prompt:
        rows = OnePerPrompt(rows, prompt_labels(inputs.shards, "train")[numbers], config.seed)
    return rows


def build_model(config: TrainConfig, inputs: TrainInputs) -> PromptModel:
    """Build a run's model at its start; a probe loads no tower, only the width of its features."""
    tower = None if config.plan.frozen_tower else open_tower(config.tower, config.seed)
    width = (tower.shape if tower else read_shape(config.tower)).width
    model = build_prompt_model(tower, width, config.plan, config.head, config.seed)
    if inputs.start is not None:
        load_head(model, inputs.start)
    return model


def guarded_prompts(config: TrainConfig, inputs: TrainInputs) -> frozenset[str]:
    """Return the ids of prompts that say left or right, if the config guards their pictures."""
    if not config.recipe.flip_guard:
        return frozenset()
    assert inputs.targets is not None, "checked before the run starts"
    ids: set[str] = set()
    for name in inputs.targets.names("rows"):
        prompts = inputs.targets.read_table(name, ["prompt_id", "prompt"])
        ids.update(prompts["prompt_id"].filter(mentions_side(prompts["prompt"])).to_pylist())
    return frozenset(ids)


def checkpoints(out: str) -> CheckpointStore:
    """Open the checkpoints of the run in folder `out`; a finished run has none."""
    return CheckpointStore(RunFolder(out).checkpoints)
