"""Measure the peak memory of workers and of the object store: ten times the rows, the same memory.

Tiny pictures in a Parquet source go through index, clean, shards and features; targets and groups
are invented, since only their number matters here. While shards and features run, the script
watches the private memory of every worker process and the pages of the object store that were ever
touched. The driver is shown too: it holds the vectors of the kept prompts (1.5 KB each), and before
that a part of the index (up to 100,000 rows) as Python objects. Two cores of an AMD EPYC (Zen 5):

       rows   stage      worker   object store   driver   (MiB)
     10,000   shards        284             20      554
     10,000   features      404             20      557
    100,000   shards        297             20     1142
    100,000   features      418             21      602

    python tests/benchmarks/memory.py
"""

import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import tyro

from img2prompt import cli
from img2prompt.artifact import Artifact
from img2prompt.config.prepare import (
    FeaturesConfig,
    GroupConfig,
    PrepareConfig,
    ShardConfig,
    TargetsConfig,
)
from img2prompt.config.sources import PictureSource
from img2prompt.config.tower import TowerConfig
from img2prompt.data import images
from img2prompt.data.shards import SPLITS
from img2prompt.data.vectors import DIMENSIONS, vector_column
from img2prompt.distributed import cluster
from img2prompt.draft import Draft
from img2prompt.model.towers.clip import ClipTower
from img2prompt.prepare import clean, features, group, index, shard, targets
from img2prompt.workspace import Stage

ROWS_PER_GROUP = 500
MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Options:
    """Numbers of rows and the size of pictures."""

    rows: tuple[int, ...] = (10_000, 100_000)
    size: int = 32
    """Side of the pictures in pixels."""
    pictures: int = 500
    """Pictures that the rows share."""


@dataclass
class Peaks:
    """Largest sizes measured, in MiB."""

    worker: float = 0.0
    store: float = 0.0
    driver: float = 0.0
    stop: threading.Event = field(default_factory=threading.Event)

    def sample(self) -> None:
        raylet = next(p for p in psutil.Process().children() if p.name() == "raylet")
        for process in [psutil.Process(), raylet, *raylet.children(recursive=True)]:
            try:
                title, memory = " ".join(process.cmdline()[:1]), process.memory_info()
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            private = (memory.rss - memory.shared) / MIB
            if process.pid == raylet.pid:
                self.store = max(self.store, memory.shared / MIB)
            elif process.pid == psutil.Process().pid:
                self.driver = max(self.driver, private)
            elif title.startswith("ray::") and not title.startswith("ray::IDLE"):
                self.worker = max(self.worker, private)


@contextmanager
def sampled() -> Iterator[Peaks]:
    """Sample five times a second while the block runs."""
    peaks = Peaks()

    def watch() -> None:
        while not peaks.stop.wait(0.2):
            peaks.sample()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peaks
    finally:
        peaks.stop.set()
        thread.join()


def write_source(options: Options, rows: int, folder: Path) -> PictureSource:
    """Write a Parquet file of pictures, two to a prompt."""
    rng = np.random.default_rng(0)
    pictures = [
        images.encode(rng.integers(0, 256, (40, 40, 3), np.uint8), "png")
        for _ in range(options.pictures)
    ]
    size = pa.array(np.full(ROWS_PER_GROUP, 40, np.int32))
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema(
        [("image", image), ("prompt", pa.string()), ("width", pa.int32()), ("height", pa.int32())]
    )
    with pq.ParquetWriter(folder / "pictures.parquet", schema) as writer:
        for start in range(0, rows, ROWS_PER_GROUP):
            numbers = range(start, start + ROWS_PER_GROUP)
            # Bytes after a PNG's end are not part of the picture; they make every file different.
            data = {n: pictures[n % len(pictures)] + n.to_bytes(4) for n in numbers}
            column = [{"bytes": data[n], "path": f"{n}.png"} for n in numbers]
            prompts = [f"a picture with the number {n // 2}" for n in numbers]
            writer.write_table(pa.table([column, prompts, size, size], schema=schema))
    return PictureSource(path=str(folder / "pictures.parquet"))


def invent(cleaned: Artifact, folder: Path) -> tuple[Artifact, Artifact]:
    """Write targets and groups of the prompts without encoding or comparing them."""
    rows = cleaned.read_tables("rows", ["prompt_id", "prompt"])
    prompts = rows.group_by(["prompt_id", "prompt"]).aggregate([]).sort_by("prompt_id")
    count = len(prompts)
    vectors = np.random.default_rng(0).normal(size=(count, DIMENSIONS)).astype(np.float32)
    ids, numbers = prompts["prompt_id"], np.arange(count)
    columns = [ids, prompts["prompt"], np.full(count, 2, np.int32), vector_column(vectors)]
    draft = Draft.open(str(folder / "targets"), Stage.TARGETS, TargetsConfig(), {})
    draft.write_table("rows-00000.parquet", pa.table([*columns, numbers < 0], targets.SCHEMA))
    encoded = draft.publish()
    split = np.array(["train", "train", "train", "val", "test"])[numbers % 5]
    columns = [ids, ids, np.ones(count), numbers >= 0, numbers, split]
    draft = Draft.open(str(folder / "groups"), Stage.GROUPS, GroupConfig(), {})
    draft.write_table("rows-00000.parquet", pa.table(columns, group.SCHEMA))
    return encoded, draft.publish(pictures_by_split={"all": 2 * count})


def measure(options: Options, rows: int, folder: Path) -> dict[str, Peaks]:
    """Return the peaks of the shards stage and of the features stage over `rows` rows."""
    config = PrepareConfig(name="memory", sources=(write_source(options, rows, folder),))
    listed = index.run(config, str(folder / "index"))
    cleaned = clean.run(config.clean, listed, str(folder / "clean"))
    encoded, grouped = invent(cleaned, folder)
    own = ShardConfig(size=options.size)
    with sampled() as sharding:
        shards = shard.run(
            own, config.clean, listed, cleaned, encoded, grouped, str(folder / "shards")
        )
    assert sum(shards.counts[split] for split in SPLITS) == rows
    tower = TowerConfig(weights=write_tower(options, folder))
    with sampled() as embedding:
        features.run(FeaturesConfig(tower=tower), shards, str(folder / "features"))
    return {"shards": sharding, "features": embedding}


def write_tower(options: Options, folder: Path) -> str:
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape |= {"intermediate_size": 64, "image_size": options.size, "patch_size": 16}
    ClipTower.fresh(shape, seed=0).save(folder / "tower", torch.float32)
    return str(folder / "tower")


def run(options: Options) -> dict[int, dict[str, Peaks]]:
    """Measure and print each number of rows, in a cluster of its own."""
    measured = {}
    for rows in options.rows:
        with cluster.connect(), tempfile.TemporaryDirectory() as folder:
            measured[rows] = measure(options, rows, Path(folder))
    cli.show(
        "peak MiB: private memory of the largest worker and of the driver, touched object store",
        ["rows", "stage", "worker", "object store", "driver"],
        [
            [f"{rows:,}", stage, *(f"{p:.0f}" for p in (peaks.worker, peaks.store, peaks.driver))]
            for rows, stages in measured.items()
            for stage, peaks in stages.items()
        ],
    )
    return measured


if __name__ == "__main__":
    run(tyro.cli(Options, description=__doc__))
