"""A worker of a run under Ray Train."""

from collections.abc import Mapping
from typing import Any, TypeVar

import ray.train
from ray.train.collective import barrier, broadcast_from_rank_zero

from img2prompt.distributed import metrics
from img2prompt.distributed.internals import preemption_notice, quieten_worker_reports
from img2prompt.distributed.placement import usable_cores
from img2prompt.train.batches import WorkerRank
from img2prompt.train.health import ENDED, StopRequestedError
from img2prompt.train.job import TrainJob
from img2prompt.train.worker import WorkerContext, train_worker

T = TypeVar("T")


class RayWorker(WorkerContext):
    """This process among the workers of a Ray Train run."""

    def __init__(self, at_once: int) -> None:
        """`at_once` runs share the machine, each with as many workers here as this one."""
        context, device = ray.train.get_context(), ray.train.torch.get_device()
        rank = WorkerRank(context.get_world_rank(), context.get_world_size())
        workers = context.get_local_world_size() * at_once
        cores = max(1, usable_cores() // workers)
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


def run_ray_worker(job: TrainJob) -> str:
    """Train this worker's part; return what was saved if the run was asked to stop, else "".

    As an error, the stop would make Ray Train print its traceback.
    """
    quieten_worker_reports()
    try:
        train_worker(job, RayWorker(job.at_once))
    except StopRequestedError as stop:
        return str(stop)
    finally:
        ENDED.set()
    return ""
