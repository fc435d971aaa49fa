"""Room of a cluster for trials: how many run at once, and how many of them on one machine."""

import math
from collections.abc import Mapping, Sequence

from img2prompt.config.search import SearchConfig
from img2prompt.distributed import cluster
from img2prompt.train.preflight import worker_count


def trials_on_a_machine(concurrent: int, workers: int, nodes: Sequence[Mapping[str, float]]) -> int:
    """Return how many of the concurrent trials share a machine.

    Without their part of the cores, the threads of each would wait for those of the others. On
    GPUs, as many share one as its GPUs have room for: Ray may fill a machine before the next.

    Args:
        concurrent: Trials at a time.
        workers: Workers of a trial.
        nodes: Resources of the machines that are alive, by Ray's names.
    """
    if gpus := max((node.get("GPU", 0) for node in nodes), default=0):
        return min(concurrent, max(1, int(gpus // workers)))
    machines = sum(node.get("CPU", 0) > 0 for node in nodes)
    return math.ceil(concurrent / max(1, machines))


def concurrent_trials(config: SearchConfig) -> int:
    """Return how many trials fit the cluster at once with their drivers and workers; 0: none.

    On CPUs a trial takes a whole CPU for its driver: the rest of it is too small for a worker.
    """
    resources, workers = cluster.resources(), worker_count(config.base)
    if resources.gpus >= 1:
        fit = int(resources.gpus // workers)
    else:
        fit = int(resources.cpus // (workers + 1))
    return min(config.concurrent or fit, fit)


def require_room(config: SearchConfig) -> None:
    """Check that the cluster can run one trial, which would otherwise wait forever.

    Raises:
        UserError: the cluster is too small.
    """
    workers = worker_count(config.base)
    if cluster.resources().gpus >= 1:
        cluster.require(cpus=1, gpus=workers)
    else:
        cluster.require(cpus=workers + 1)
