"""Measure how streaming pictures through actors scales, with a model that only sleeps.

With a model that sleeps a fixed time for each batch, N actors should do N times what one does, as
long as reading, decoding and Ray's own work keep up. The rate counts from when the last actor has
begun until the first has nothing left, so that starting 16 processes on few cores is not mistaken
for a limit. The last line is a model that takes no time: the ceiling of the plumbing on this
machine. Every row must come back once. On two cores of an AMD EPYC (Zen 5):

    actors    rows/s   of linear
         1        62       96.2%
         2       126       98.4%
         4       253       98.6%
         8       506       98.8%
        16     1,009       98.5%

    python tests/benchmarks/scaling.py
"""

import os
import tempfile
import time
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
import tyro
from torch import Tensor, nn

from img2prompt import cli
from img2prompt.artifact import Artifact
from img2prompt.config.prepare import ShardConfig
from img2prompt.data import images
from img2prompt.data.shards import SCHEMA
from img2prompt.data.vectors import DIMENSIONS, to_matrix, vector_column
from img2prompt.distributed import cluster
from img2prompt.distributed.actors import Pool, forward_shards
from img2prompt.distributed.forward import ModelMaker
from img2prompt.draft import Draft
from img2prompt.model.views import ViewVectors


@dataclass(frozen=True, kw_only=True)
class Options:
    """Numbers of actors, batches and sleep."""

    actors: tuple[int, ...] = (1, 2, 4, 8, 16)
    seconds: float = 0.5
    """Seconds that the model sleeps for each batch."""
    batch_size: int = 32
    batches: int = 40
    """Batches of each actor."""
    free_rows: int = 100_000
    """Rows for the model that takes no time: many more than are decoded while it starts."""
    size: int = 32
    """Side of the pictures in pixels."""
    rows_per_shard: int = 256


def sleeper(seconds: float, zero: float) -> ModelMaker:
    """Maker of a model whose output is (begin, end, process) for each row, times since `zero`."""

    # Workers cannot import this file; a class inside a function travels to them whole.
    class Sleeper(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            began = time.time() - zero
            time.sleep(seconds)
            row = torch.tensor([began, time.time() - zero, float(os.getpid())])
            return row.repeat(len(pixels), 1)

    return lambda device: ViewVectors(Sleeper(), ["plain"])


def write_shards(options: Options, rows: int, folder: str) -> Artifact:
    config = ShardConfig(size=options.size, rows_per_shard=options.rows_per_shard)
    draft = Draft.open(folder, "shards", config, {})
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (options.size, options.size, 3), np.uint8)
    picture = images.encode(noise, "png")
    for number, start in enumerate(range(0, rows, options.rows_per_shard)):
        count = min(options.rows_per_shard, rows - start)
        ids = [f"{start + row:07d}" for row in range(count)]
        targets = vector_column(np.zeros((count, DIMENSIONS)))
        table = pa.table([ids, ids, ids, [picture] * count, targets], schema=SCHEMA)
        draft.write_table(f"train/{number:05d}.parquet", table, config.rows_per_group)
    return draft.publish()


def stream(options: Options, shards: Artifact, actors: int, seconds: float) -> np.ndarray:
    """Return (begin, end, process) of every row; pictures go through the real pipeline."""
    rows = sum(receipt.rows for receipt in shards.files.values())
    make = sleeper(seconds, time.time())
    pool = Pool(make_model=make, batch_size=options.batch_size, workers=actors)
    times = pool.times(f"{actors} actors", rows)
    seen: list[str] = []
    stamps = []
    for _, table in forward_shards(shards, shards.names("train/"), pool, times):
        seen += table["id"].to_pylist()
        stamps.append(to_matrix(table["vector"]))
    times.log()
    assert len(seen) == len(set(seen)) == rows, "every row comes once"
    return np.concatenate(stamps)


def steady_rate(stamps: np.ndarray) -> float:
    """Return rows a second while all actors work."""
    begin, end, process = stamps.T
    each = [process == number for number in np.unique(process)]
    start, stop = max(begin[own].min() for own in each), min(end[own].max() for own in each)
    inside = (end > start) & (end <= stop)
    # Batches cut by the window's edges count by the share inside it.
    cut = (begin < start) & (end > start)
    whole = inside.sum() - cut.sum()
    part = ((end[cut] - start) / np.maximum(end[cut] - begin[cut], 1e-9)).sum()
    return float((whole + part) / max(stop - start, 1e-9))


def run(options: Options) -> dict[int, float]:
    """Measure and print; return rows/s by number of actors, 0 for a model that takes no time."""
    rates: dict[int, float] = {}
    most = max(options.actors)
    with cluster.connect(cpus=2 * most + 2), tempfile.TemporaryDirectory() as folder:
        for actors in options.actors:
            rows = actors * options.batches * options.batch_size
            shards = write_shards(options, rows, f"{folder}/{actors}")
            rates[actors] = steady_rate(stream(options, shards, actors, options.seconds))
        shards = write_shards(options, options.free_rows, f"{folder}/free")
        rates[0] = steady_rate(stream(options, shards, 1, 0.0))
    linear = options.batch_size / options.seconds
    cli.show(
        f"a model that sleeps {options.seconds} s for {options.batch_size} pictures",
        ["actors", "rows/s", "of linear"],
        [
            [actors, f"{rate:.0f}", f"{rate / (actors * linear):.1%}"]
            for actors, rate in rates.items()
            if actors
        ]
        + [["1, no sleep", f"{rates[0]:.0f}", "the ceiling"]],
    )
    return rates


if __name__ == "__main__":
    run(tyro.cli(Options, description=__doc__))
