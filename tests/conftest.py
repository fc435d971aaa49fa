"""Fixtures that every test may use. Heavy imports wait until a fixture needs them."""

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from img2prompt.artifact import Artifact
    from img2prompt.chain import ChainResult
    from img2prompt.config.chain import ChainConfig
    from img2prompt.distributed.cluster import Resources
    from img2prompt.prepare.prepared_data import PreparedData

# Threads that share a matrix of 32 columns only wait for each other. Torch reads this at import.
os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"

TINY_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real pictures and prompts, beside the checkout."""
    if not (SHARED_DATA / "pictures.csv").exists():
        pytest.skip(f"needs the real pictures and prompts in {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="session")
def cluster() -> Iterator["Resources"]:
    """One Ray cluster on this machine for all tests marked `ray`: 4 logical CPUs, no GPU."""
    from img2prompt.distributed.cluster import connect

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]), prepend=":")
        with connect(cpus=4, dashboard=True) as resources:
            yield resources


@pytest.fixture(scope="session")
def prepared(cluster: "Resources", tmp_path_factory: pytest.TempPathFactory) -> "PreparedData":
    """250 prompts of drawn scenes with two pictures each, at 32 pixels, in several small shards."""
    from img2prompt.config.prepare import GroupConfig, PrepareConfig, ShardConfig
    from img2prompt.config.sources import SceneSource
    from img2prompt.prepare import run as prepare

    config = PrepareConfig(
        name="tiny",
        sources=(SceneSource(prompts=250, size=32),),
        group=GroupConfig(val_fraction=0.2),
        shard=ShardConfig(size=32, rows_per_shard=64, rows_per_group=8),
    )
    return prepare.run(config, str(tmp_path_factory.mktemp("prepared")))


@pytest.fixture(scope="session")
def tiny_tower(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Checkpoint folder of an untrained tower: 4 layers, 32 wide, 32 pixels."""
    import torch

    from img2prompt.model.towers.clip import ClipTower

    folder = tmp_path_factory.mktemp("tower")
    ClipTower.fresh(TINY_TOWER, seed=0).save(folder, torch.float32)
    return str(folder)


@pytest.fixture(scope="session")
def embedded(
    prepared: "PreparedData", tiny_tower: str, tmp_path_factory: pytest.TempPathFactory
) -> "Artifact":
    """Features of the prepared pictures, plain and flipped, by the tiny tower in float32.

    Shards and features are given as URIs.
    """
    from img2prompt.artifact import Artifact
    from img2prompt.config.prepare import FeaturesConfig
    from img2prompt.config.tower import TowerConfig
    from img2prompt.prepare import features

    tower = TowerConfig(weights=tiny_tower)
    views = ("plain", "flip")
    config = FeaturesConfig(tower=tower, batch_size=20, precision="fp32", workers=2, views=views)
    shards = Artifact.load(f"file://{prepared.shards.uri}", "shards")
    return features.run(config, shards, f"file://{tmp_path_factory.mktemp('features')}")


PICTURES_FOLDER = "drawn, one by one"
"""Folder of the pictures of the second source; its comma is in every id."""


@dataclass(frozen=True)
class Run:
    """A finished chain."""

    config: "ChainConfig"
    out: str
    made: "ChainResult"


@pytest.fixture(scope="session")
def chained(cluster, tiny_tower: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A chain on drawn scenes and a CSV of pictures, with an untrained tower and few steps."""
    from img2prompt import chain

    folder = tmp_path_factory.mktemp("chain")
    config = _config(_csv_of_scenes(folder), tiny_tower)
    out = str(folder / "out")
    return Run(config, out, chain.run(config, out))


def _csv_of_scenes(folder: Path) -> str:
    """60 drawn pictures of another world as files of three formats, larger than the shards'."""
    from img2prompt.config.sources import SceneSource
    from img2prompt.data.sources.catalogue import list_rows
    from img2prompt.data.sources.reader import read_pictures

    (folder / PICTURES_FOLDER).mkdir()
    lines = [["file", "prompt"]]
    for row in list_rows(SceneSource(prompts=60, pictures_per_prompt=1, world="tower", size=48)):
        assert isinstance(row, dict)
        name = f"{PICTURES_FOLDER}/{row['member'].replace('/', '.')}.png"
        (folder / name).write_bytes(next(read_pictures([(row["uri"], row["member"])])))
        lines.append([name, row["prompt"]])
    with open(folder / "pictures.csv", "w", newline="") as file:
        csv.writer(file).writerows(lines)
    return str(folder / "pictures.csv")


def _config(pictures: str, weights: str) -> "ChainConfig":
    from img2prompt.config.chain import ChainConfig
    from img2prompt.config.predict import EvaluateConfig
    from img2prompt.config.prepare import FeaturesConfig, GroupConfig, PrepareConfig, ShardConfig
    from img2prompt.config.sources import PictureSource, SceneSource
    from img2prompt.config.tower import TowerConfig
    from img2prompt.config.train import EngineConfig, OptimConfig, PlanConfig, TrainConfig

    tower, engine = TowerConfig(weights=weights), EngineConfig(kind="plain", workers=1)
    sources = (SceneSource(prompts=90, size=32, seed=1), PictureSource(path=pictures, name="files"))
    optim = OptimConfig(epochs=4, batch_size=16, lr=1e-3, head_lr=1e-2)
    return ChainConfig(
        prepare=PrepareConfig(
            name="tiny",
            sources=sources,
            group=GroupConfig(val_fraction=0.2, test_fraction=0.3),
            shard=ShardConfig(size=32, rows_per_shard=48, rows_per_group=8),
        ),
        features=FeaturesConfig(tower=tower, batch_size=16, workers=1),
        probe=TrainConfig(name="probe", tower=tower, engine=engine, optim=optim),
        finetune=TrainConfig(
            name="lora",
            tower=tower,
            start_from="probe",
            plan=PlanConfig(lora_rate=0.5, nfz_rate=0.25, lora_rank=4),
            engine=engine,
            optim=optim,
        ),
        evaluate=EvaluateConfig(neighbours=3, batch_size=16),
        samples=4,
    )
