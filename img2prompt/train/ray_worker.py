"""A worker of a run under Ray Train."""

import os
from collections.abc import Mapping
from typing import Any, TypeVar

import ray.train
from ray.train.collective import barrier, broadcast_from_rank_zero

from img2prompt.distributed import metrics
from img2prompt.distributed.internals import preemption_notice, quieten_worker_reports
from img2prompt.train.batches import WorkerRank
from img2prompt.train.health import ENDED
from img2prompt.train.job import TrainJob
from img2prompt.train.worker import WorkerContext, train_worker

T = TypeVar("T")


class RayWorker(WorkerContext):
    """This process among the workers of a Ray Train run."""

    def __init__(self) -> None:
        context, device = ray.train.get_context(), ray.train.torch.get_device()
        rank = WorkerRank(context.get_world_rank(), context.get_world_size())
        cores = max(1, (os.cpu_count() or 1) // context.get_local_world_size())
        super().__init__(rank, device, cores)

    def report(self, row: dict[str, Any]) -> None:
        ray.train.report(row)

    def observe(self, name: str, line: Mapping[str, Any]) -> None:
        metrics.record_line(name, line)

    def from_first(self, value: T) -> T:
        return broadcast_from_rank_zero(value)

    def wait_for_all(self) -> None:
        barrier()

    def notice(self) -> object | None:
        return preemption_notice()


def run_ray_worker(job: TrainJob) -> None:
    """Train this worker's part."""
    quieten_worker_reports()
    try:
        train_worker(job, RayWorker())
    finally:
        ENDED.set()
