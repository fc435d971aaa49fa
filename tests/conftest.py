"""Fixtures that every test may use. Heavy imports wait until a fixture needs them."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from img2prompt.artifact import Artifact
    from img2prompt.runtime import Resources
    from img2prompt.stages.prepare import Prepared

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
    """Real pictures and prompts that lie beside the checkout."""
    if not (SHARED_DATA / "pictures.csv").exists():
        pytest.skip(f"needs the real pictures and prompts in {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="session")
def cluster() -> Iterator["Resources"]:
    """One Ray cluster on this machine for all tests marked `ray`: 4 logical CPUs, no GPU."""
    from img2prompt import runtime

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]), prepend=":")
        with runtime.connect(cpus=4, dashboard=True) as there:
            yield there


@pytest.fixture(scope="session")
def prepared(cluster: "Resources", tmp_path_factory: pytest.TempPathFactory) -> "Prepared":
    """250 prompts of drawn scenes with two pictures each, at 32 pixels, in several small shards."""
    from img2prompt.config import GroupConfig, PrepareConfig, SceneSource, ShardConfig
    from img2prompt.stages import prepare

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

    from img2prompt.model.tower import fresh_tower, save_tower

    folder = tmp_path_factory.mktemp("tower")
    save_tower(fresh_tower(TINY_TOWER, seed=0), folder, torch.float32)
    return str(folder)


@pytest.fixture(scope="session")
def embedded(
    prepared: "Prepared", tiny_tower: str, tmp_path_factory: pytest.TempPathFactory
) -> "Artifact":
    """Features of the prepared pictures, plain and flipped, by the tiny tower in float32.

    Both are named by URIs.
    """
    from img2prompt.artifact import Artifact
    from img2prompt.config import FeaturesConfig, TowerConfig
    from img2prompt.stages import features

    tower = TowerConfig(weights=tiny_tower)
    views = ("plain", "flip")
    config = FeaturesConfig(tower=tower, batch_size=20, precision="fp32", workers=2, views=views)
    shards = Artifact.load(f"file://{prepared.shards.uri}", "shards")
    return features.run(config, shards, f"file://{tmp_path_factory.mktemp('features')}")
