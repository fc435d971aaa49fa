"""Compare a probe's epoch from cached features with an epoch that runs the tower.

A tower of the shape of ViT-B/16 at 224 px with random weights embeds every row once (the features
stage), and the training stage trains a head from the cached features. Beside it, a plain loop
trains the same head behind the frozen tower: the same rows and order, pixels already in memory, the
tower without gradients and in bf16 where the machine has it. Both count training rows only, and
leave out the first epoch, the loop's warm-up. After the same epochs both heads must have the same
losses and validation cosine, except for the float16 of the cache.

The ratio is that of the tower's cost to the head's. It grows with the tower (a picture costs 11
times as much with ViT-L/14 at 336 px), so it is not a constant of this package.

On two cores of an AMD EPYC (Zen 5), 512 pictures of 224 px, 12 layers of 768; all features once
take 64.0 s with start:

    tower each epoch        15 rows/s   33,554 ms an epoch        1
    cached features     27,651              19                1,812

    RAY_worker_niceness=0 python tests/benchmarks/probe.py
"""

import contextlib
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from torch import Tensor, nn
from training_material import REAL, Material, samples, write_shards, write_tower
from training_runs import CPU, in_processes

from img2prompt import cli
from img2prompt.artifact import Artifact
from img2prompt.config.prepare import FeaturesConfig
from img2prompt.config.tower import TowerConfig
from img2prompt.config.train import EngineConfig, OptimConfig, TrainConfig
from img2prompt.data.order import epoch_batches, steps_per_epoch
from img2prompt.data.shards import ShardRows
from img2prompt.distributed import cluster
from img2prompt.model.loss import cosine_loss, cosines
from img2prompt.model.precision import compute_dtype
from img2prompt.model.prompt_model import build_prompt_model
from img2prompt.model.towers.build import open_tower
from img2prompt.prepare import features
from img2prompt.train import run as train
from img2prompt.train.batches import WorkerRank
from img2prompt.train.job import TrainInputs
from img2prompt.train.optim import build_optimizer, build_schedule

History = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Size of the data and of the tower."""

    rows: int = 512
    batch_size: int = 64
    epochs: int = 3
    size: int = 224
    """Side of the pictures in pixels."""
    patch: int = 16
    layers: int = 12
    width: int = 768
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    pictures: Path = REAL
    """Folder of pictures.csv; noise if it has none."""


def config_of(options: Options, tower: TowerConfig) -> TrainConfig:
    return TrainConfig(
        name="probe",
        tower=tower,
        optim=OptimConfig(epochs=options.epochs, batch_size=options.batch_size),
        engine=EngineConfig(kind="plain", workers=1, precision=options.precision),
    )


def cached(
    options: Options, config: TrainConfig, shards: Artifact, folder: Path
) -> tuple[float, History]:
    """Return the seconds of the features stage and the history of a probe on its features."""
    began = time.perf_counter()
    embed = FeaturesConfig(tower=config.tower, precision=options.precision)
    embedded = features.run(embed, shards, str(folder / "features"))
    seconds = time.perf_counter() - began
    train.run(config, TrainInputs(shards, embedded), str(folder / "run"))
    return seconds, json.loads((folder / "run" / train.HISTORY).read_text())


class Frozen(nn.Module):
    """A head behind a frozen tower that runs for every batch."""

    def __init__(self, config: TrainConfig, rows: int) -> None:
        super().__init__()
        self._dtype = compute_dtype(config.engine.precision, CPU)
        tower = open_tower(config.tower)
        probe = build_prompt_model(None, tower.shape.width, config.plan, config.head, config.seed)
        self._tower, self.head = tower.to(self._dtype), probe.head
        self._optimizer = build_optimizer(probe, config.optim)
        steps = config.optim.epochs * steps_per_epoch(rows, config.optim.batch_size)
        self._schedule = build_schedule(self._optimizer, config.optim, steps)
        self._clip = config.optim.clip_norm

    def forward(self, pixels: Tensor) -> Tensor:
        with torch.no_grad():
            feature = self._tower(pixels)
        half = self._dtype != torch.float32
        with torch.autocast("cpu", self._dtype) if half else contextlib.nullcontext():
            return self.head(feature)

    def learn(self, pixels: Tensor, targets: Tensor) -> float:
        loss = cosine_loss(self(pixels), targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.head.parameters(), self._clip)
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad()
        return loss.item()


def tower_each_epoch(_: WorkerRank, config: TrainConfig, shards: Artifact) -> History:
    """Return the history of the same probe, trained in one process with all cores."""
    rows, size = ShardRows(shards, "train"), config.optim.batch_size
    everything = _in_memory(shards, "train")
    probe, history = Frozen(config, len(rows)), []
    for epoch in range(config.optim.epochs):
        shares = epoch_batches(np.array([len(rows)]), config.seed, epoch, size)
        began = time.perf_counter()
        losses = [probe.learn(*(part[share] for part in everything)) for share in shares]
        seconds = time.perf_counter() - began
        with torch.no_grad():
            pixels, targets = _in_memory(shards, "val")
            score = cosines(probe(pixels), targets).mean().item()
        row = {"train_loss": float(np.mean(losses)), "val_cosine": score}
        history.append(row | {"rows_per_second": len(shares) * size / seconds})
    return history


def _in_memory(shards: Artifact, split: str) -> tuple[Tensor, Tensor]:
    rows = ShardRows(shards, split)
    batch = rows.fetch(np.arange(len(rows)))
    return torch.from_numpy(batch.inputs), torch.from_numpy(batch.targets)


def check_same(history: History, expected: History) -> None:
    """Raise AssertionError for heads with other losses or scores."""
    for number, (one, other) in enumerate(zip(history, expected, strict=True), 1):
        for name in ("train_loss", "val_cosine"):
            apart = abs(one[name] - other[name])
            assert apart < 2e-3, f"epoch {number}: {name} is {apart:.2g} apart"


def rate_of(history: History) -> float:
    """Return the median rows a second of the epochs after the first."""
    return float(np.median([row["rows_per_second"] for row in history[1:]]))


def run(options: Options) -> dict[str, float]:
    """Measure and print; return rows a second."""
    material = Material(
        rows=options.rows,
        size=options.size,
        patch=options.patch,
        layers=options.layers,
        width=options.width,
        pictures=options.pictures,
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = config_of(options, write_tower(material, folder / "tower"))
        pictures = samples(material, folder / "pictures")
        shards = write_shards(material, pictures, folder / "shards")
        with cluster.connect():
            once, ours = cached(options, config, shards, folder)
        (theirs,) = in_processes(tower_each_epoch, 1, config, shards)
    check_same(ours, theirs)
    rates = {"tower each epoch": rate_of(theirs), "cached features": rate_of(ours)}
    slow = rates["tower each epoch"]
    cli.show(
        f"{options.rows} pictures of {options.size} px, {options.layers} layers x {options.width}, "
        f"linear head; all features once, with start: {once:.1f} s",
        ["", "rows/s", "ms an epoch", "times as fast"],
        [
            [name, f"{rate:,.0f}", f"{1000 * options.rows / rate:,.0f}", f"{rate / slow:,.0f}"]
            for name, rate in rates.items()
        ],
    )
    return rates


if __name__ == "__main__":
    run(tyro.cli(Options, description=__doc__))
