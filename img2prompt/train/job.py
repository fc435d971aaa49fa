"""A training job: its inputs, the message to its workers, and its folders."""

from dataclasses import dataclass

from img2prompt.artifact import Artifact
from img2prompt.config.train import TrainConfig
from img2prompt.data.shards import FeatureRows, ShardRows
from img2prompt.model.prompt_model import PromptModel, build_prompt_model, load_head
from img2prompt.model.towers.build import open_tower, read_shape
from img2prompt.train.batches import Rows, RowSubset
from img2prompt.train.checkpoint import CheckpointStore
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
    share = config.optim.share
    return RowSubset(rows, share, config.seed) if split == "train" and share < 1 else rows


def build_model(config: TrainConfig, inputs: TrainInputs) -> PromptModel:
    """Build a run's model at its start; a probe loads no tower, only the width of its features."""
    tower = None if config.plan.frozen_tower else open_tower(config.tower, config.seed)
    width = (tower.shape if tower else read_shape(config.tower)).width
    model = build_prompt_model(tower, width, config.plan, config.head, config.seed)
    if inputs.start is not None:
        load_head(model, inputs.start)
    return model


def checkpoints(out: str) -> CheckpointStore:
    """Open the checkpoints of the run in folder `out`; a finished run has none."""
    return CheckpointStore(RunFolder(out).checkpoints)
