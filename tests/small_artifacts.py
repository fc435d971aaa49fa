"""Shards, features and runs that tests write in their own process, without a cluster."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import safetensors.torch
import torch
from tiny import config_of, model_of

from img2prompt.artifact import Artifact
from img2prompt.config.prepare import FeaturesConfig, ShardConfig
from img2prompt.config.tower import TowerConfig
from img2prompt.config.train import PlanConfig
from img2prompt.data import images
from img2prompt.data.shards import SCHEMA
from img2prompt.data.vectors import vector_column
from img2prompt.draft import Draft
from img2prompt.model.prompt_model import WEIGHTS, learned_state
from img2prompt.model.towers.build import open_tower
from img2prompt.model.views import VIEWS

SIZE = 32
ROWS = {"train": [5, 7], "val": [3], "test": [4, 2]}
"""Rows of each file of a split."""


def write_shards(folder: Path, seed: int = 0) -> Artifact:
    """Pictures of noise with random unit targets, all of source `noise`."""
    rng = np.random.default_rng(seed)
    draft = Draft.open(str(folder), "shards", ShardConfig(size=SIZE), {})
    for split, files in ROWS.items():
        for number, rows in enumerate(files):
            ids = [f"{split}/{number}/{row}" for row in range(rows)]
            pixels = rng.integers(0, 256, (rows, SIZE, SIZE, 3), np.uint8)
            targets = rng.normal(size=(rows, 384))
            targets /= np.linalg.norm(targets, axis=1, keepdims=True)
            pictures = [images.encode(picture, "png") for picture in pixels]
            columns = [ids, ids, ["noise"] * rows, pictures, vector_column(targets)]
            draft.write_table(f"{split}/{number:05d}.parquet", pa.table(columns, schema=SCHEMA))
    return draft.publish(**{split: sum(files) for split, files in ROWS.items()})


def pixels_of(shards: Artifact, files: str) -> torch.Tensor:
    """Pixels uint8 (N, S, S, 3) of the files whose name begins with `files`, such as a split."""
    data = shards.read_tables(files, ["image"])["image"].to_pylist()
    return torch.from_numpy(np.stack([images.decode(picture) for picture in data]))


@torch.inference_mode()
def write_features(
    folder: Path, shards: Artifact, tower: str, views: tuple[str, ...] = ("plain", "flip")
) -> Artifact:
    """Features by a tower in float32, in several views."""
    config = FeaturesConfig(tower=TowerConfig(weights=tower), precision="fp32")
    config = config.replace({"views": list(views)})
    model = open_tower(config.tower)
    inputs = {"shards": shards.fingerprint, "tower": model.base_fingerprint}
    draft = Draft.open(str(folder), "features", config, inputs)
    for name in shards.names():
        pixels = pixels_of(shards, name)
        ids = shards.read_table(name, ["id"])["id"].to_pylist()
        features = np.concatenate([model(VIEWS[view](pixels)).numpy() for view in views])
        columns = {
            "id": ids * len(views),
            "view": np.repeat(np.array(views), len(ids)),
            "feature": vector_column(features, np.float16),
        }
        draft.write_table(name, pa.table(columns))
    return draft.publish()


def write_run(folder: Path, shards: Artifact, tower: str, plan: PlanConfig) -> Artifact:
    """A finished run of random learned tensors in the stage `train`."""
    config = config_of(tower, plan)
    generator = torch.Generator().manual_seed(0)
    state = {
        name: tensor + 0.05 * torch.rand(tensor.shape, generator=generator)
        for name, tensor in learned_state(model_of(config)).items()
    }
    inputs = {
        "tower": open_tower(config.tower).base_fingerprint,
        "shards": shards.fingerprint,
    }
    draft = Draft.open(str(folder), "train", config, inputs)
    draft.write_bytes(WEIGHTS, safetensors.torch.save(state))
    return draft.publish()
