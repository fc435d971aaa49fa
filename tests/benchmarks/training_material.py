"""Inputs of the training benchmarks: a tower with random weights, pictures, shards."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from img2prompt.artifact import Artifact
from img2prompt.config.prepare import ShardConfig
from img2prompt.config.tower import TowerConfig
from img2prompt.data import images
from img2prompt.data.shards import SCHEMA
from img2prompt.data.vectors import DIMENSIONS, vector_column
from img2prompt.draft import Draft
from img2prompt.model.towers.clip import ClipTower

REAL = Path(__file__).parents[3] / "shared" / "data"


@dataclass(frozen=True, kw_only=True)
class Material:
    """Sizes of a tower with random weights and of its pictures."""

    rows: int
    size: int
    """Side of the pictures in pixels."""
    layers: int
    width: int
    patch: int = 16
    val_rows: int = 16
    distinct: int = 128
    """Different pictures, which the rows repeat."""
    pictures: Path = REAL
    """Folder of pictures.csv; noise if it has none."""


Samples = list[tuple[Path, str]]
"""Picture files and their prompts."""


def samples(material: Material, folder: Path) -> Samples:
    """Return real pictures with their prompts, or noise that is written to `folder`."""
    table = material.pictures / "pictures.csv"
    if table.exists():
        with open(table, newline="") as file:
            rows = list(csv.DictReader(file))[: material.distinct]
        return [(material.pictures / row["file"], row["prompt"]) for row in rows]
    folder.mkdir(parents=True, exist_ok=True)
    rng, pictures = np.random.default_rng(0), []
    for number in range(min(16, material.distinct)):
        path = folder / f"{number}.png"
        Image.fromarray(rng.integers(0, 256, (512, 512, 3), np.uint8)).save(path)
        pictures.append((path, f"a picture of noise with the number {number}, {number**2} colours"))
    return pictures


def write_tower(material: Material, folder: Path) -> TowerConfig:
    shape = {
        "hidden_size": material.width,
        "intermediate_size": 4 * material.width,
        "num_hidden_layers": material.layers,
        "num_attention_heads": max(1, material.width // 64),
        "image_size": material.size,
        "patch_size": material.patch,
    }
    ClipTower.fresh(shape, seed=0).save(folder)
    return TowerConfig(weights=str(folder))


def write_shards(
    material: Material, pictures: Samples, folder: Path, targets: np.ndarray | None = None
) -> Artifact:
    """Write shards that repeat the samples; `targets` (samples, 384), or random ones."""
    config = ShardConfig(size=material.size)
    draft = Draft.open(str(folder), "shards", config, {})
    decoded = [images.decode(path.read_bytes()) for path, _ in pictures]
    files = [images.encode(images.resize(p, config.size, config.fit), "png") for p in decoded]
    if targets is None:
        targets = np.random.default_rng(1).normal(size=(len(files), DIMENSIONS))
    for split, count in (("train", material.rows), ("val", material.val_rows)):
        for number, start in enumerate(range(0, count, config.rows_per_shard)):
            rows = np.arange(start, min(start + config.rows_per_shard, count))
            ids, sample = [f"{split}-{row:07d}" for row in rows], rows % len(files)
            data = [files[row] for row in sample]
            columns = [ids, ids, ids, data, vector_column(targets[sample])]
            table = pa.table(columns, schema=SCHEMA)
            draft.write_table(f"{split}/{number:05d}.parquet", table, config.rows_per_group)
    return draft.publish(train=material.rows, val=material.val_rows)
