"""Where shards of pictures are made: in Ray Data actors, or in this process without a cluster.

An actor holds a pipeline and writes whole shards; no picture passes through the driver. Actors that
are lost are replaced, and actors that wait for a node join when it comes.
"""

import json
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import ray
import ray.data
import torch

from img2prompt.config.generate import GenerateConfig
from img2prompt.distributed.actors import actor_count
from img2prompt.distributed.placement import has_gpus
from img2prompt.draft import Draft
from img2prompt.errors import UserError
from img2prompt.generate.estimate import Rate, measure
from img2prompt.generate.pictures import PicturePipeline
from img2prompt.generate.plan import PictureRequest, Plan, read_requests
from img2prompt.generate.shards import ShardReport, write_shard


@dataclass(frozen=True)
class ShardJob:
    """Everything that an actor needs to make shards. Plain data, until the pipeline is used."""

    draft: Draft
    config: GenerateConfig
    plan: Plan
    prompts: str
    """URI of the file of prompts."""

    @cached_property
    def pipeline(self) -> PicturePipeline:
        """The pipeline, on this process's GPU or CPU."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return PicturePipeline(self.config, device)

    def requests(self, shard: int) -> list[PictureRequest]:
        return read_requests(self.prompts, self.plan, shard, self.config.seed)

    def make(self, shard: int) -> ShardReport:
        """Make and write one shard."""
        pipeline, sampling = self.pipeline, self.config.sampling
        settings = {
            "step": sampling.steps,
            "cfg": sampling.guidance,
            "sampler": pipeline.sampler,
            "generator": f"{pipeline.kind} {self.draft.inputs['weights']}",
        }
        return write_shard(self.draft, shard, self.requests(shard), pipeline, settings)

    def rate(self) -> Rate:
        """Measure the rate of the pipeline on the first prompts."""
        return measure(self.pipeline, self.requests(0), self.config.encoding)


class _ShardActor:
    """An actor that makes shards.

    It returns a UserError as text, because Ray would wrap it, and retry the start of an actor.
    """

    def __init__(self, job: ShardJob) -> None:
        self._job = job

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Make the shard of a batch of one row; return its report in JSON, or the error."""
        try:
            report = self._job.make(int(batch["shard"][0]))
        except UserError as error:
            return {"report": [""], "error": [str(error)]}
        return {"report": [json.dumps(asdict(report))], "error": [""]}


def with_dtype(config: GenerateConfig) -> GenerateConfig:
    """Return the config with the number type that `auto` is on this cluster or machine."""
    if config.pipeline.dtype != "auto":
        return config
    dtype = "fp16" if has_gpus() else "fp32"
    return replace(config, pipeline=replace(config.pipeline, dtype=dtype))


def actors(config: GenerateConfig, shards: int) -> int:
    """Return the number of actors for so many shards.

    Raises:
        UserError: the cluster cannot hold the configured number.
    """
    return min(actor_count(config.workers), max(1, shards)) if ray.is_initialized() else 1


def measured_rate(job: ShardJob) -> Rate:
    """Measure the rate of one device, in a Ray task where there is a cluster."""
    if not ray.is_initialized():
        return job.rate()
    # A process of its own, so that its memory on the GPU is free for an actor.
    gpus, cpus = _reserved()
    task = ray.remote(max_calls=1)(_rate).options(num_gpus=gpus, num_cpus=cpus)
    rate = ray.get(task.remote(job))
    if isinstance(rate, UserError):
        raise rate
    return rate


def _rate(job: ShardJob) -> Rate | UserError:
    try:
        return job.rate()
    except UserError as error:
        return UserError(str(error))


def make_shards(job: ShardJob, shards: Sequence[int]) -> Generator[ShardReport]:
    """Make shards and yield their reports as they finish, in any order.

    Raises:
        UserError: the pipeline cannot be loaded.
    """
    if not ray.is_initialized() or not shards:
        yield from map(job.make, shards)
        return
    count, (gpus, cpus) = actors(job.config, len(shards)), _reserved()
    rows = ray.data.from_items([{"shard": s} for s in shards], override_num_blocks=len(shards))
    reports = rows.map_batches(
        _ShardActor,
        fn_constructor_args=(job,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=count, initial_size=count),
        num_gpus=gpus,
        num_cpus=cpus,
    )
    for row in reports.iter_rows():
        if row["error"]:
            raise UserError(row["error"])
        yield ShardReport(**json.loads(row["report"]))


def _reserved() -> tuple[int, int]:
    """Return the GPUs and CPUs that an actor reserves: one GPU, or one CPU where there is none."""
    return (1, 0) if has_gpus() else (0, 1)
