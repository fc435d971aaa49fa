"""A process group on this machine, for tests of several workers."""

import os
import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import tenacity
import torch
import torch.distributed as dist
from torch.multiprocessing import ProcessExitedException


def join(rank: int, workers: int, meet: str) -> None:
    """Join the group as worker `rank`; workers meet through the file `meet`, which must be new."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=workers)


def _aborted(error: BaseException) -> bool:
    """Return True if gloo aborted a process, as it sometimes does (also in torch's own tests)."""
    return isinstance(error, ProcessExitedException) and error.exit_code == -signal.SIGABRT


@tenacity.retry(
    retry=tenacity.retry_if_exception(_aborted), stop=tenacity.stop_after_attempt(3), reraise=True
)
def run_workers(
    work: Callable[..., None], workers: int, folder: Path, *arguments: Any, name: str = "meet"
) -> None:
    """Run `work(rank, *arguments)` in a group of `workers` processes."""
    meet = folder / name
    meet.unlink(missing_ok=True)
    torch.multiprocessing.spawn(_member, args=(workers, str(meet), work, arguments), nprocs=workers)


def _member(
    rank: int, workers: int, meet: str, work: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    join(rank, workers, meet)
    work(rank, *arguments)
    # No destroy_process_group: gloo may abort a process whose peers close their sockets first.
    store = dist.distributed_c10d._get_default_store()
    store.set(f"done-{rank}", "")
    store.wait([f"done-{other}" for other in range(workers)], timedelta(minutes=2))
    os._exit(0)
