"""Compare many heads in one pass over the cached features with a separate training of each.

One grid of probes is trained two ways, on one running cluster: by the stage heads, and by the stage
train under Ray Train (RAY_ADDRESS is local), one after the other. A separate training also pays for
its start, its reading of the features and its publishing; both sides save all checkpoints. Every
head must have the same losses and validation cosines in every epoch, to 1e-5.

The tower has random weights and one layer: it makes features as wide as the demo tower's, and is
not part of what is timed.

On two cores of an AMD EPYC (Zen 5), 16 heads, 12 epochs of 4,000 features of 160:

    one by one     145.3 s     5,285 features/s of all heads    1.0
    in one pass     15.0 s    51,260                            9.7

    python tests/benchmarks/heads.py
"""

import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from training_material import Material, samples, write_shards, write_tower

from img2prompt import cli
from img2prompt.artifact import Artifact
from img2prompt.config.heads import HeadsConfig
from img2prompt.config.prepare import FeaturesConfig
from img2prompt.config.tower import TowerConfig
from img2prompt.config.train import EngineConfig, OptimConfig, TrainConfig
from img2prompt.distributed import cluster
from img2prompt.prepare import features
from img2prompt.storage import read_bytes
from img2prompt.train import heads
from img2prompt.train import run as train
from img2prompt.train.job import TrainInputs

History = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Options:
    """The grid of heads and the size of the data."""

    widths: tuple[int, ...] = (0, 512)
    dropouts: tuple[float, ...] = (0.0, 0.2)
    lrs: tuple[float, ...] = (1e-3, 2e-3, 5e-3, 1e-2)
    rows: int = 4000
    val_rows: int = 500
    feature: int = 160
    """Width of a feature."""
    batch_size: int = 128
    epochs: int = 12


def config_of(options: Options, tower: TowerConfig) -> HeadsConfig:
    base = TrainConfig(
        name="probe",
        tower=tower,
        optim=OptimConfig(epochs=options.epochs, batch_size=options.batch_size),
        engine=EngineConfig(kind="plain", workers=1, precision="fp32"),
    )
    return HeadsConfig(base=base, widths=options.widths, dropouts=options.dropouts, lrs=options.lrs)


def make_features(options: Options, folder: Path) -> tuple[TowerConfig, TrainInputs]:
    material = Material(
        rows=options.rows,
        val_rows=options.val_rows,
        size=32,
        layers=1,
        width=options.feature,
        patch=8,
        pictures=folder,  # has no pictures.csv, so noise is drawn
    )
    tower = write_tower(material, folder / "tower")
    shards = write_shards(material, samples(material, folder / "noise"), folder / "shards")
    config = FeaturesConfig(tower=tower, precision="fp32")
    return tower, TrainInputs(shards, features.run(config, shards, str(folder / "features")))


def together(
    config: HeadsConfig, inputs: TrainInputs, folder: Path
) -> tuple[float, dict[str, History]]:
    """Train all heads in one pass; return seconds and the epochs of each head."""
    began = time.perf_counter()
    trained = heads.run(config, inputs, str(folder / "heads"))
    seconds = time.perf_counter() - began
    return seconds, {row["name"]: row["epochs"] for row in heads.table(trained.uri)}


def one_by_one(
    config: HeadsConfig, inputs: TrainInputs, folder: Path
) -> tuple[float, dict[str, History]]:
    """Train each head alone with the stage train; return seconds and the epochs of each head."""
    began = time.perf_counter()
    runs = {h.name: train.run(h, inputs, str(folder / h.name)) for h in config.heads()}
    seconds = time.perf_counter() - began
    return seconds, {name: _history(run) for name, run in runs.items()}


def _history(run: Artifact) -> History:
    return json.loads(read_bytes(run.path(train.HISTORY)))


def check_same(histories: dict[str, History], expected: dict[str, History]) -> None:
    """Raise AssertionError for heads with other losses or scores."""
    assert histories.keys() == expected.keys()
    for name, history in expected.items():
        for ours, theirs in zip(histories[name], history, strict=True):
            for key in ("train_loss", "val_cosine"):
                apart = abs(ours[key] - theirs[key])
                assert apart < 1e-5, f"{name}, epoch {ours['epoch']}: {key} is {apart:.2g} apart"


def run(options: Options) -> float:
    """Measure and print; return how many times faster one pass is."""
    os.environ.setdefault("RAY_ADDRESS", "local")
    with cluster.connect(), tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tower, inputs = make_features(options, folder)
        config = config_of(options, tower)
        ours, histories = together(config, inputs, folder)
        theirs, expected = one_by_one(config, inputs, folder)
    check_same(histories, expected)
    count, pictures = len(histories), options.epochs * options.rows
    cli.show(
        f"{count} heads, {options.epochs} epochs of {options.rows} features of {options.feature}",
        ["", "seconds", "features/s of all heads", "times as fast"],
        [
            [
                name,
                f"{seconds:.1f}",
                f"{count * pictures / seconds:,.0f}",
                f"{theirs / seconds:.1f}",
            ]
            for name, seconds in (("one by one", theirs), ("in one pass", ours))
        ],
    )
    return theirs / ours


if __name__ == "__main__":
    run(tyro.cli(Options, description=__doc__))
