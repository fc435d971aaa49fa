"""Predicted cost of each setting before the search starts: layers, memory, FLOP, device-hours.

Hours are FLOP divided by a rate. The rate is measured where earlier trials of the search, or
fine-tunes under the same `--out`, trained the same tower. Otherwise it is the device's peak times
the share of it that training is expected to reach, and the table says so.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from typing import Any

import pyarrow.fs as pafs
import torch

from img2prompt.artifact import CONFIG
from img2prompt.config.search import SearchConfig
from img2prompt.config.train import TrainConfig
from img2prompt.distributed import cluster
from img2prompt.errors import UserError
from img2prompt.model.plan import LayerPlan, layer_plan
from img2prompt.model.precision import compute_dtype
from img2prompt.model.towers.base import TowerShape
from img2prompt.search.space import Setting, Space
from img2prompt.storage import exists, join, open_uri, read_bytes
from img2prompt.train.estimate import (
    epoch_flop,
    estimate,
    memory_arguments,
    rows_of_epoch,
)
from img2prompt.train.preflight import worker_count
from img2prompt.train.steplog import PEAKS, epochs_and_seconds


@dataclass(frozen=True)
class Price:
    """Predicted cost of one trial."""

    layers: LayerPlan
    learned: int
    """Trained parameters."""
    flop: int
    """FLOP of a row, forward and backward."""
    memory: int
    """Bytes that a worker needs."""
    rows: int
    """Training pictures of an epoch."""
    epoch: int
    """FLOP of an epoch, with validation."""


def price(config: TrainConfig, shape: TowerShape, counts: Mapping[str, Any]) -> Price:
    """Predict the cost of a trial; `counts` are the rows of the splits."""
    a_row, workers = estimate(config, shape), worker_count(config)
    return Price(
        layers=layer_plan(shape.depth, config.plan.lora_rate, config.plan.nfz_rate),
        learned=a_row.learned,
        flop=a_row.forward + a_row.backward,
        memory=sum(a_row.memory(*memory_arguments(config, workers)).values()),
        rows=rows_of_epoch(config, counts["train"]),
        epoch=epoch_flop(config, shape, counts),
    )


@dataclass(frozen=True)
class Rate:
    """FLOP/s of a device in training; 0: unknown."""

    flops: float
    source: str

    def hours(self, flop: float) -> float | None:
        """Device-hours of so many FLOP."""
        return flop / self.flops / 3600 if self.flops else None


def rate_of(
    config: SearchConfig, shape: TowerShape, counts: Mapping[str, Any], folders: Iterable[str]
) -> Rate:
    """Return the rate of runs in these folders, or else the expected one."""
    measured = [rate for folder in folders if (rate := _measured(config, shape, counts, folder))]
    if measured:
        flop, seconds = (sum(values) for values in zip(*measured, strict=True))
        return Rate(flop / seconds, f"measured in {len(measured)} runs here")
    if config.peak_tflops:
        peak, source = config.peak_tflops * 1e12, f"--peak-tflops {config.peak_tflops:g}"
    else:
        peak, source = _peak(config.base)
    return Rate(config.mfu * peak, f"{source}, of which {config.mfu:.0%} are expected (--mfu)")


def _measured(
    config: SearchConfig, shape: TowerShape, counts: Mapping[str, Any], folder: str
) -> tuple[float, float] | None:
    """Return FLOP and worker-seconds of a fine-tune of the same tower, else None."""
    try:
        run = TrainConfig.from_json(read_bytes(join(folder, CONFIG)).decode())
    except (FileNotFoundError, UserError):
        return None
    epochs, seconds = epochs_and_seconds(folder)
    if run.tower != config.base.tower or run.plan.frozen_tower or not seconds:
        return None
    return epochs * price(run, shape, counts).epoch, seconds


def runs_in(folder: str) -> list[str]:
    """Return the folders in a folder that contain a training run."""
    fs, path = open_uri(folder)
    infos = fs.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    names = [info.base_name for info in infos if info.type == pafs.FileType.Directory]
    return [join(folder, name) for name in sorted(names) if exists(join(folder, name, CONFIG))]


def _peak(base: TrainConfig) -> tuple[float, str]:
    """Return FLOP/s of a device of the cluster, and the source of this number."""
    if cluster.resources().gpus < 1:
        return _measure_cpu_peak(base), "peak of a core: a matrix product on this machine"
    for name in cluster.accelerators():
        for known, peak in PEAKS.items():
            if known in name.split("-"):
                return peak, f"peak of {known}, by its data sheet"
    return 0.0, "unknown: give the peak of a device with --peak-tflops"


def _measure_cpu_peak(base: TrainConfig, size: int = 768) -> float:
    """Measure FLOP/s of a matrix product on one core, in the number type of training."""
    dtype = compute_dtype(base.engine.precision, torch.device("cpu"))
    one, threads = torch.ones(size, size, dtype=dtype), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        one @ one  # warm-up
        start = time.perf_counter()
        for _ in range(5):
            one @ one
        return 5 * 2 * size**3 / (time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)


def within_memory(
    config: SearchConfig, prices: Mapping[Setting, Price]
) -> tuple[list[Setting], dict[str, str]]:
    """Return the settings that fit a worker, and why others are left out, by name.

    Raises:
        UserError: no setting fits.
    """
    limit = 1e9 * config.max_memory_gb or float("inf")
    fitting = [setting for setting, cost in prices.items() if cost.memory <= limit]
    left_out = {
        setting.name: f"needs {cost.memory / 1e9:.3g} GB a worker, max_memory_gb is "
        f"{config.max_memory_gb:g}"
        for setting, cost in prices.items()
        if cost.memory > limit
    }
    if not fitting:
        least = min(cost.memory for cost in prices.values())
        raise UserError(
            f"max_memory_gb is {config.max_memory_gb:g}; allowed: {least / 1e9:.3g} or more, which "
            "the smallest setting needs. base.engine.micro_batch and base.engine.recompute need "
            "less"
        )
    return fitting, left_out


def total_flop(config: SearchConfig, prices: Mapping[Setting, Price]) -> float:
    """Predict the FLOP of the whole search, if ASHA stops no trial.

    `prices` are those on all rows. Each trial counts as the mean of all settings, since the ones to
    be tried are not known.
    """
    epochs = config.base.optim.epochs
    epoch = sum(p.epoch for p in prices.values()) / len(prices)
    count = len(prices) if config.searcher == "grid" else min(config.trials, len(prices))
    total = 0.0
    for number, share in enumerate(config.shares):
        tried = -(-count // config.reduction**number)
        total += share * epoch * _epochs_of(config, tried, epochs)
    return total + min(config.top, count) * (config.seeds - 1) * epoch * epochs


def _epochs_of(config: SearchConfig, tried: int, epochs: int) -> int:
    if config.scheduler != "one-epoch" or tried <= config.top:
        return tried * epochs
    return tried * config.grace_epochs + config.top * (epochs - config.grace_epochs)


def report(
    config: SearchConfig,
    space: Space,
    prices: Mapping[Setting, Price],
    left_out: Mapping[str, str],
    rate: Rate,
) -> dict[str, Any]:
    """Return the JSON of the space, the cost of each setting trained to the end, and the total."""
    counts = {name: getattr(space, name) for name in ("points", "overlapping", "idle", "equal")}
    return {
        **counts,
        "refused": dict(space.refused),
        "left_out": dict(left_out),
        "rate": {"flops": rate.flops, "source": rate.source},
        "hours": rate.hours(total_flop(config, prices)),
        "max_hours": config.max_hours,
        "settings": [
            {
                "name": setting.name,
                "setting": setting.to_dict(),
                "layers": [len(layers) for layers in astuple(cost.layers)],
                "learned": cost.learned,
                "flop": cost.flop,
                "memory": cost.memory,
                "hours": rate.hours(config.base.optim.epochs * cost.epoch),
            }
            for setting, cost in prices.items()
        ],
    }
