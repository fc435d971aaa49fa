"""Model actors on Ray Data: pictures in, columns of predictions out.

Features, evaluation and prediction share this. Bytes and uint8 pixels travel between tasks; floats
are made on the model's device. Reading and decoding run in plain tasks on CPUs. The model runs in a
pool of actors with one GPU each, or about one CPU each where there is no GPU. While an actor's
model works on one batch, the next batch is unpacked and sent to its device. Every row carries the
seconds of its reading, decoding and forward pass, so that a stage can report its bottleneck.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from img2prompt.artifact import Artifact
from img2prompt.distributed import cluster
from img2prompt.distributed.forward import (
    STEP_COLUMNS,
    Forward,
    ModelMaker,
    ReadingTask,
    read_task,
    reading_tasks,
)
from img2prompt.distributed.progress import StepTimes

DECODE_CPUS, MODEL_CPUS = 0.5, 0.75
"""CPUs of a decoding task, and of a model's actor where there is no GPU. They differ, so that Ray
never fuses the two: the plan on CPUs is then the plan on GPUs. Actors that restart on fewer nodes
than they were counted for leave room for decoding; without it they would wait without end."""

TASK_BYTES = 96 << 20
"""Decoded pixels of one reading task; Ray Data cuts what exceeds 128 MiB into odd pieces."""


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Actors that run one model over pictures."""

    make_model: ModelMaker
    batch_size: int
    workers: int = 0
    """Actors; 0: one per GPU, or half of the CPUs where there is no GPU."""

    def actors(self, rows: int) -> int:
        """Return the number of actors for so many rows.

        Raises UserError when the cluster cannot hold the configured number.
        """
        return min(actor_count(self.workers), max(1, math.ceil(rows / self.batch_size)))

    def forward(self, data: ray.data.Dataset, rows: int) -> ray.data.Dataset:
        """Replace the column `pixels` of `rows` rows by the model's columns and `forward_s`."""
        actors, gpus = self.actors(rows), cluster.resources().gpus
        return data.map_batches(
            Forward,
            fn_constructor_args=(self.make_model, self.batch_size, actors),
            batch_size=self.batch_size,
            compute=ray.data.ActorPoolStrategy(
                size=actors, max_concurrent_calls_per_actor=2, enable_true_multi_threading=True
            ),
            num_gpus=1 if gpus else 0,
            num_cpus=0 if gpus else MODEL_CPUS,
        )

    def times(self, stage: str, rows: int) -> StepTimes:
        """Return the step times of a run over so many rows, to which each row's are added."""
        actors, available = self.actors(rows), cluster.resources()
        reading = max(1, int(available.cpus - (0 if available.gpus else actors)))
        return StepTimes(stage, {"read": reading, "decode": reading, "forward": actors, "write": 1})


def actor_count(workers: int) -> int:
    """Return the configured number of actors, else one per GPU, or half of the CPUs without GPUs.

    Raises:
        UserError: the cluster cannot hold so many; Ray would wait for room without end.
    """
    available = cluster.resources()
    actors = workers or int(available.gpus) or max(1, int(available.cpus) // 2)
    reading = 1  # CPU beside those of the actors
    cluster.require(gpus=actors) if available.gpus else cluster.require(cpus=actors + reading)
    return actors


def forward_shards(
    shards: Artifact, names: Sequence[str], pool: Pool, times: StepTimes
) -> Iterator[tuple[str, pa.Table]]:
    """Yield each file's name and rows, in its row order, as soon as all its rows are done.

    The rows have `id` and the model's columns. Files finish in any order. Only the rows of
    unfinished files are held. The seconds that the steps took are added to `times`.
    """
    count = sum(shards.files[name].rows for name in names)
    if not count:
        return
    # Enough tasks for all actors, each with at least a batch.
    at_once = max(pool.batch_size, math.ceil(count / pool.actors(count)))
    at_once = min(at_once, TASK_BYTES // (3 * shards.config["size"] ** 2))
    tasks = [asdict(task) for name in names for task in reading_tasks(shards, name, at_once)]
    rows = ray.data.from_items(tasks, override_num_blocks=len(tasks))
    read = functools.partial(_read, shards)
    rows = rows.map_batches(read, batch_size=1, batch_format="pyarrow", num_cpus=DECODE_CPUS)
    outputs = pool.forward(rows, count)
    waiting: dict[str, list[pa.Table]] = {}
    for batch in outputs.iter_batches(batch_size=None, batch_format="pyarrow"):
        table = cast(pa.Table, batch)
        times.add_columns(table)
        for name in table["name"].unique().to_pylist():
            parts = waiting.setdefault(name, [])
            parts.append(table.filter(pc.field("name") == name))
            if sum(part.num_rows for part in parts) == shards.files[name].rows:
                complete = pa.concat_tables(waiting.pop(name)).sort_by("row")
                yield name, complete.drop_columns(["name", "row", *STEP_COLUMNS])


def forward_rows(
    rows: Sequence[Mapping[str, Any]],
    load: Callable[[Any], Any],
    make_model: ModelMaker,
    batch_size: int,
) -> Iterator[pa.Table]:
    """Yield tables with the columns of `load`, without `pixels`, and the model's, in any order.

    `load` is called in tasks with batches of `rows`.
    """
    loaded = ray.data.from_items(list(rows)).map_batches(
        load, batch_size=batch_size, num_cpus=DECODE_CPUS
    )
    answered = Pool(make_model=make_model, batch_size=batch_size).forward(loaded, len(rows))
    for batch in answered.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield cast(pa.Table, batch)


def _read(shards: Artifact, task: Any) -> Any:
    """Read a task, a table of one row (`read_task`)."""
    return read_task(
        shards, ReadingTask(**{name: task[name][0].as_py() for name in task.column_names})
    )


def forward_split(shards: Artifact, split: str, pool: Pool) -> pa.Table:
    """Return `id` and the model's columns for all rows of a split, in the order of the shards."""
    names = [name for name in shards.names(f"{split}/") if shards.files[name].rows]
    times = pool.times(f"forward {split}", sum(shards.files[name].rows for name in names))
    tables = dict(forward_shards(shards, names, pool, times))
    times.log()
    return pa.concat_tables([tables[name] for name in names])
