"""Seconds of a core and bytes for one row: measured by earlier stages under `--out`, or assumed.

A core's seconds carry over to other nodes, as their cores are alike within a factor of about two.
FLOP/s do not: for other nodes they are a GPU's peak and a share of it (`utilisation`).
"""

import json
from dataclasses import dataclass

from img2prompt.artifact import Artifact
from img2prompt.config.prepare import FeaturesConfig
from img2prompt.config.train import PlanConfig
from img2prompt.distributed.progress import TIMINGS
from img2prompt.errors import UserError
from img2prompt.model.towers.base import TowerShape
from img2prompt.model.towers.build import read_shape
from img2prompt.planning.nodes import node
from img2prompt.storage import exists, join, open_uri, read_bytes
from img2prompt.workspace import Stage, Workspace

ASSUMED = "assumed"

CORE_FLOPS = 40e9
"""Assumed 32-bit FLOP/s of a core in matrix products."""
DECODE_SOURCE = 1 / 186 + 1 / 1390 + 1 / 300
"""Assumed seconds of a core to decode a 512-pixel PNG, resize it, and encode the shard's copy."""
DECODE_SHARD = 1 / 757
"""Assumed seconds of a core to decode a picture of a shard (JPEG, 512 pixels, simplejpeg)."""
BYTES_A_PIXEL = 0.6
"""Assumed bytes of a shard's picture for each of its pixels."""


@dataclass(frozen=True)
class Rate:
    """A number for one row, and where it comes from."""

    value: float
    source: str


@dataclass(frozen=True)
class Rates:
    """What the plan needs to know of this machine and data set."""

    prepare: Rate
    """Seconds of a core to read, decode, resize and write a picture."""
    decode: Rate
    """Seconds of a core to read and decode a picture of a shard."""
    shard_bytes: Rate
    """Bytes of a picture in a shard."""
    machine_flops: Rate
    """FLOP/s of this machine's models in the tower's forward pass."""


def read_rates(out: str, size: int) -> Rates:
    """Read the rates of finished stages under `out`, for pictures of `size` pixels.

    Args:
        out: Folder of a data set; it may be empty or absent.
        size: Side of the shards' pictures in pixels, for the assumptions.
    """
    workspace = Workspace(out)
    shards, features = _timings(workspace.shards), _timings(workspace.features)
    prepare = decode = flops = None
    if shards:
        prepare = sum(shards["busy_s"].values()) / shards["rows"]
    if features:
        busy, rows = features["busy_s"], features["rows"]
        decode = (busy["read"] + busy["decode"]) / rows
        if flop := _flop_of_features(workspace.features):
            flops = flop * rows * features["at_once"]["forward"] / busy["forward"]
    return Rates(
        prepare=_rate(prepare, DECODE_SOURCE, "shards/"),
        decode=_rate(decode, DECODE_SHARD, "features/"),
        shard_bytes=_rate(_bytes_a_picture(workspace.shards), BYTES_A_PIXEL * size**2, "shards/"),
        machine_flops=_rate(flops, CORE_FLOPS * node("this").cores, "features/"),
    )


def forward_flop(shape: TowerShape) -> int:
    """Return the FLOP of the frozen tower's forward pass for one picture in one view."""
    return shape.cost(PlanConfig(), half=False).forward


def _flop_of_features(folder: str) -> int | None:
    """Return the FLOP of one picture's features in all views; None if their tower is absent."""
    try:
        saved = Artifact.load(folder, Stage.FEATURES).config
        config = FeaturesConfig.from_json(json.dumps(saved), where=folder)
        return forward_flop(read_shape(config.tower)) * len(config.views)
    except UserError:
        return None


def _rate(measured: float | None, assumed: float, folder: str) -> Rate:
    return Rate(assumed, ASSUMED) if measured is None else Rate(measured, f"measured in {folder}")


def _timings(folder: str) -> dict | None:
    """Return the step times of a stage's last run, or None if it has none or no rows."""
    path = join(folder, TIMINGS)
    if not exists(path):
        return None
    timings = json.loads(read_bytes(path))
    return timings if timings["rows"] else None


def _bytes_a_picture(folder: str) -> float | None:
    try:
        shards = Artifact.load(folder, Stage.SHARDS)
    except UserError:
        return None
    names = [name for split in ("train", "val", "test") for name in shards.names(f"{split}/")]
    rows = sum(shards.files[name].rows for name in names)
    fs, path = open_uri(folder)
    sizes = [info.size for info in fs.get_file_info([f"{path}/{name}" for name in names])]
    return sum(sizes) / rows if rows else None
