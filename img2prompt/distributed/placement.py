"""Where work runs: little of it in this process, the rest on a Ray cluster.

Starting Ray, Ray Train's controller and actors that import torch takes tens of seconds on two
cores; training a probe for an epoch, or answering for a few hundred pictures, takes less. So what
one worker can do on few rows runs in this process. That needs RAY_ADDRESS to be unset: a cluster
that it names gets such work too, and RAY_ADDRESS=local asks for Ray on this machine. One exception
is a probe in closed form from fewer than 200,000 pictures (`train/run.py`): the driver solves it.

Nothing here imports Ray, which takes seconds itself, before it is needed.
"""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

OWN_CLUSTER = "IMG2PROMPT_OWN_CLUSTER"
"""Environment variable that is set while `cluster.connect` keeps a cluster that nobody named."""

FEW_PICTURES = 2_000
"""Most pictures that predictors answer for in this process. One process decodes and predicts with
all cores of a machine without GPUs, as actors do, but with one of its GPUs."""


def cluster_is_named() -> bool:
    """Return True if RAY_ADDRESS names a cluster that the work has to run on."""
    return bool(os.environ.get("RAY_ADDRESS")) and not os.environ.get(OWN_CLUSTER)


def usable_cores() -> int:
    """Return how many cores this process may use: a container or batch job may have few of them."""
    return len(os.sched_getaffinity(0))


def few_pictures(pictures: int) -> bool:
    """Return True if predictors answer for so many pictures in this process."""
    return pictures <= FEW_PICTURES and not cluster_is_named()


def has_gpus() -> bool:
    """Return True if the connected cluster has a GPU; without a cluster, if this machine has."""
    if (ray := sys.modules.get("ray")) and ray.is_initialized():
        from img2prompt.distributed import cluster

        return cluster.resources().gpus >= 1
    import torch

    return torch.cuda.is_available()


@contextmanager
def connected(needed: bool, **options: Any) -> Iterator[None]:
    """Connect to a cluster (`cluster.connect`) if it is needed; else Ray is not imported."""
    if not needed:
        logging.basicConfig(format=LOG_FORMAT)
        logging.getLogger("img2prompt").setLevel(logging.INFO)
        yield
        return
    from img2prompt.distributed import cluster

    with cluster.connect(**options):
        yield
