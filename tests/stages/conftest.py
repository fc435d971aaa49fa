"""One tiny chain, run once, for the tests of its last stages."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from img2prompt.config import ChainConfig
    from img2prompt.stages.chain import Chain

NAMES = "drawn, one by one"
"""Folder of the pictures of the second source: its comma is in every id."""


@dataclass(frozen=True)
class Run:
    config: "ChainConfig"
    out: str
    made: "Chain"


@pytest.fixture(scope="session")
def chained(cluster, tiny_tower: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Drawn scenes and a CSV of pictures through all stages; an untrained tower, few steps."""
    from img2prompt.stages import chain

    folder = tmp_path_factory.mktemp("chain")
    config = _config(_csv_of_scenes(folder), tiny_tower)
    out = str(folder / "out")
    return Run(config, out, chain.run(config, out))


def _csv_of_scenes(folder: Path) -> str:
    """60 drawn pictures of another world as files of three formats, larger than the shards'."""
    from img2prompt.config import SceneSource
    from img2prompt.data.sources import list_rows, read_pictures

    (folder / NAMES).mkdir()
    lines = [["file", "prompt"]]
    for row in list_rows(SceneSource(prompts=60, pictures_per_prompt=1, world="tower", size=48)):
        assert isinstance(row, dict)
        name = f"{NAMES}/{row['member'].replace('/', '.')}.png"
        (folder / name).write_bytes(next(read_pictures([(row["uri"], row["member"])])))
        lines.append([name, row["prompt"]])
    with open(folder / "pictures.csv", "w", newline="") as file:
        csv.writer(file).writerows(lines)
    return str(folder / "pictures.csv")


def _config(pictures: str, weights: str) -> "ChainConfig":
    from img2prompt.config import (
        ChainConfig,
        EngineConfig,
        EvaluateConfig,
        FeaturesConfig,
        GroupConfig,
        OptimConfig,
        PictureSource,
        PlanConfig,
        PrepareConfig,
        SceneSource,
        ShardConfig,
        TowerConfig,
        TrainConfig,
    )

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
        evaluate=EvaluateConfig(neighbours=3, bootstrap=300, batch_size=16),
        samples=4,
    )
