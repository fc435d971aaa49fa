"""Compare the training stage with a bare loop of the same model.

One tower with random weights, heavy enough to be the bottleneck, is trained on the same rows in the
same order two ways: by the whole stage (Ray Train, DeepSpeed, reading and decoding shards, logs),
and by a plain loop over tensors that are already in memory, in as many processes with as many
threads (AdamW; DistributedDataParallel over gloo for two). The bare loop runs before and after the
stage, and its mean counts. Rates leave out the first steps; the stage's are those of its
metrics.jsonl without the first line (15 s). The stage's rate with its start is shown too. Both must
end with the same loss and the same validation cosine.

On two cores of an AMD EPYC (Zen 5), 40 and 60 steps of 16 pictures, 12 layers of 512. The machine's
rate differs by a tenth from run to run, more than the difference sought with two workers:

    workers    bare loop    stage    with start    stage of bare    bare runs apart
    1          12.94 /s     12.60    10.72          97.3%           0.7%
    2          14.00        13.29    10.72          95.0%           5.3%
    2          11.95        13.61    11.91         113.9%           1.5%
    2, ZeRO 1  14.49        13.37    10.79          92.2%           0.6%

    RAY_worker_niceness=0 python tests/benchmarks/training.py
"""

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from training_material import REAL, Material, samples, write_shards, write_tower
from training_runs import Trained, by_bare_loop, check_same

from img2prompt import cli
from img2prompt.artifact import Artifact
from img2prompt.config.tower import TowerConfig
from img2prompt.config.train import EngineConfig, OptimConfig, PlanConfig, TrainConfig
from img2prompt.data.order import steps_per_epoch
from img2prompt.distributed import cluster
from img2prompt.train import run as train
from img2prompt.train import steplog
from img2prompt.train.job import TrainInputs


@dataclass(frozen=True, kw_only=True)
class Options:
    """Workers, steps and sizes."""

    workers: tuple[int, ...] = (1, 2)
    steps: int = 40
    warmup: int = 4
    """Steps of the bare loop that are not counted."""
    batch_size: int = 16
    size: int = 224
    """Side of the pictures in pixels."""
    layers: int = 12
    width: int = 512
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    zero_stage: Literal[0, 1, 2, 3] = EngineConfig().zero_stage
    pictures: Path = REAL
    """Folder of pictures.csv; noise if it has none."""


def config_of(options: Options, tower: TowerConfig, workers: int) -> TrainConfig:
    """Return the config of one epoch with the published layout."""
    return TrainConfig(
        name=f"workers-{workers}",
        tower=tower,
        plan=PlanConfig(lora_rate=0.6, nfz_rate=0.4),
        optim=OptimConfig(epochs=1, batch_size=options.batch_size),
        engine=EngineConfig(
            workers=workers, precision=options.precision, zero_stage=options.zero_stage
        ),
    )


def by_stage(config: TrainConfig, shards: Artifact, folder: Path) -> Trained:
    """Run the stage; its rate is from metrics.jsonl without the first line, its warm-up."""
    began = time.perf_counter()
    run = train.run(config, TrainInputs(shards), str(folder))
    seconds = time.perf_counter() - began
    lines = [json.loads(text) for text in (folder / steplog.LINES).read_text().splitlines()]
    (row,) = json.loads((folder / train.HISTORY).read_text())
    size = config.optim.batch_size
    rows = steps_per_epoch(shards.counts["train"], size) * size
    return Trained(
        rate=rate_after_first([line for line in lines if "images_per_s" in line], size),
        loss=row["train_loss"],
        val_cosine=run.counts["val_cosine"],
        whole=rows / seconds,
    )


def rate_after_first(lines: list[dict[str, Any]], batch_size: int) -> float:
    """Return the rate after the first line, or that line's rate in a run of one line."""
    steps = np.diff([0, *(line["step"] for line in lines)])
    rows, rates = steps * batch_size, np.array([line["images_per_s"] for line in lines])
    skipped = 1 if len(lines) > 1 else 0
    return float(rows[skipped:].sum() / (rows / rates)[skipped:].sum())


def measure(
    options: Options, config: TrainConfig, shards: Artifact, folder: Path
) -> tuple[Trained, Trained, Trained]:
    """Run bare loop, stage, bare loop; AssertionError if they differ."""
    workers = config.engine.workers
    before = by_bare_loop(config, shards, workers, options.warmup)
    staged = by_stage(config, shards, folder / config.name)
    after = by_bare_loop(config, shards, workers, options.warmup)
    tolerance = 1e-4 if options.precision == "fp32" else 2e-3
    check_same(staged, before, tolerance, f"{workers} workers")
    return before, staged, after


def run(options: Options) -> dict[int, float]:
    """Measure and print; return the stage's share of the bare loop's rate by number of workers."""
    material = Material(
        rows=options.steps * options.batch_size,
        size=options.size,
        layers=options.layers,
        width=options.width,
        pictures=options.pictures,
    )
    rows, shares = [], {}
    with tempfile.TemporaryDirectory() as name, cluster.connect():
        folder = Path(name)
        tower = write_tower(material, folder / "tower")
        shards = write_shards(material, samples(material, folder), folder / "shards")
        for workers in options.workers:
            config = config_of(options, tower, workers)
            before, staged, after = measure(options, config, shards, folder)
            bare = (before.rate + after.rate) / 2
            shares[workers] = staged.rate / bare
            apart = abs(before.rate - after.rate) / bare
            rates = [f"{rate:.2f}" for rate in (bare, staged.rate, staged.whole)]
            rows.append([workers, *rates, f"{shares[workers]:.1%}", f"{apart:.1%}"])
    cli.show(
        f"{options.steps} steps of {options.batch_size} pictures of {options.size} px, "
        f"{options.layers} layers x {options.width}, ZeRO {options.zero_stage}",
        ["workers", "bare loop, /s", "stage", "with start", "stage of bare", "bare runs apart"],
        rows,
    )
    return shares


if __name__ == "__main__":
    run(tyro.cli(Options, description=__doc__))
