"""Compare the features stage with the bare model and with transformers' own pipeline.

One tower with random weights, heavy enough to be the bottleneck, sees the same pictures three ways:
as tensors that are already in memory (the ceiling); from shards through the stream of the features
stage (`distributed/actors.py`); and as opened pictures through transformers'
image-feature-extraction pipeline, in its own float32 and in the stage's type. The stage's rate
counts while all its actors work and after the first batch of each, since actors start once for
millions of pictures; the rate over the whole time is shown too. The bare model, also warm, runs in
as many processes as the stage has actors, for half of the pictures before the stage and for half
after it, and its mean counts; one process with all cores is shown beside it. All must give the same
features.

On two cores of an AMD EPYC (Zen 5), 224 px, bf16, 1,536 pictures through 12 layers of 512 and 448
through 12 layers of 1024 (`--rows 448 --width 1024 --theirs 32 --batch-size 16`), with
RAY_worker_niceness=0 in the environment, since Ray's workers yield to everything else by default:

                                12 x 512           12 x 1024    (pictures/s)
    bare model                  37.5   100.0%      11.7   100.0%
    bare model, one process     34.1    90.8%       9.6    82.1%
    stage                       37.0    98.6%      11.6    99.5%
    stage with start            29.1    77.6%       8.6    73.3%
    transformers fp32           10.8    28.8%       3.3    27.9%
    transformers bf16           28.5    76.1%      10.3    88.1%

    python tests/benchmarks/features.py
"""

import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
import tyro
from PIL import Image
from scaling import steady_rate
from torch import Tensor, nn
from training_material import Material, write_tower
from transformers import CLIPVisionModel, pipeline
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from img2prompt import cli
from img2prompt.artifact import Artifact
from img2prompt.config.prepare import ShardConfig
from img2prompt.config.tower import TowerConfig
from img2prompt.data import images
from img2prompt.data.shards import SCHEMA
from img2prompt.data.vectors import DIMENSIONS, to_matrix, vector_column
from img2prompt.distributed import cluster
from img2prompt.distributed.actors import Pool, actor_count, forward_shards
from img2prompt.distributed.forward import ModelMaker
from img2prompt.draft import Draft
from img2prompt.model.inference import compile_for_batches, prepare_for_inference
from img2prompt.model.precision import compute_dtype
from img2prompt.model.towers.build import open_tower
from img2prompt.model.views import ViewVectors

REAL = Path(__file__).parents[3] / "shared" / "data" / "pictures"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Pictures, tower and batches."""

    rows: int = 768
    rows_per_shard: int = 64
    batch_size: int = 32
    size: int = 224
    """Side of the pictures in pixels."""
    layers: int = 12
    width: int = 512
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    theirs: int = 64
    """Pictures for transformers' pipeline, which is slower."""
    pictures: Path = REAL
    """Folder of pictures; noise if it does not exist."""


def write_shards(options: Options, folder: str) -> Artifact:
    """Write shards of JPEGs that repeat a few pictures."""
    shard, group = options.rows_per_shard, min(64, options.rows_per_shard)
    config = ShardConfig(
        size=options.size, encoding="jpeg", rows_per_shard=shard, rows_per_group=group
    )
    draft, files = Draft.open(folder, "shards", config, {}), _files(options)
    for number, start in enumerate(range(0, options.rows, options.rows_per_shard)):
        rows = range(start, min(start + options.rows_per_shard, options.rows))
        ids = [f"{row:07d}" for row in rows]
        data = [files[row % len(files)] for row in rows]
        targets = vector_column(np.zeros((len(ids), DIMENSIONS)))
        table = pa.table([ids, ids, ids, data, targets], schema=SCHEMA)
        draft.write_table(f"train/{number:05d}.parquet", table, config.rows_per_group)
    return draft.publish()


def _files(options: Options) -> list[bytes]:
    if options.pictures.exists():
        paths = sorted(options.pictures.iterdir())[:128]
        pictures = [images.decode(path.read_bytes()) for path in paths]
    else:
        rng = np.random.default_rng(0)
        pictures = list(rng.integers(0, 256, (16, options.size, options.size, 3), np.uint8))
    return [images.encode(images.resize(p, options.size, "crop"), "jpeg") for p in pictures]


def bare(
    options: Options, tower: TowerConfig, pixels: np.ndarray, processes: int
) -> tuple[float, np.ndarray]:
    """Measure the model in `processes` that share the cores: pictures/s, and features of `pixels`.

    Each process has all of `pixels` in memory.
    """
    start = multiprocessing.get_context("spawn")
    gate = start.Barrier(processes)
    with ProcessPoolExecutor(
        processes, start, initializer=_open_gate, initargs=(gate,)
    ) as executor:
        threads = max(1, (os.cpu_count() or 1) // processes)
        own = options.rows // 2 // processes
        runs = [
            executor.submit(_bare, options, tower, pixels, threads, own) for _ in range(processes)
        ]
        results = [run.result() for run in runs]
    return sum(rate for rate, _ in results), results[0][1]


def _open_gate(gate: Any) -> None:
    global _gate
    _gate = gate


def _bare(
    options: Options, tower: TowerConfig, pixels: np.ndarray, threads: int, rows: int
) -> tuple[float, np.ndarray]:
    """Run the model over `pixels` again and again, for about `rows` rows."""
    torch.set_num_threads(threads)
    model, batches = open_tower(tower).eval(), torch.from_numpy(pixels).split(options.batch_size)
    model.to(compute_dtype(options.precision, torch.device("cpu")))
    with torch.inference_mode():
        model(batches[0])
        _gate.wait()
        passes, began = max(1, round(rows / len(pixels))), time.perf_counter()
        for _ in range(passes):
            outputs = torch.cat([model(batch) for batch in batches])
        seconds = time.perf_counter() - began
    return passes * len(pixels) / seconds, outputs.numpy()


def staged(
    options: Options, tower: TowerConfig, shards: Artifact
) -> tuple[float, float, dict[str, np.ndarray]]:
    """Run the stage: steady pictures/s, pictures/s of the whole time, and the features by id."""
    pool = Pool(
        make_model=timed(tower, options.precision, time.time()), batch_size=options.batch_size
    )
    times, stamps = pool.times("features", options.rows), []
    found: dict[str, np.ndarray] = {}
    began = time.perf_counter()
    for _, table in forward_shards(shards, shards.names("train/"), pool, times):
        vectors = to_matrix(table["vector"])
        found |= dict(zip(table["id"].to_pylist(), vectors[:, 3:], strict=True))
        stamps.append(vectors[:, :3])
    whole = options.rows / (time.perf_counter() - began)
    times.log()
    return steady_rate(after_first(np.concatenate(stamps))), whole, found


def after_first(stamps: np.ndarray) -> np.ndarray:
    """Leave out the rows of each process' first batch; rows are (begin, end, process)."""
    begin, _, process = stamps.T
    warm = np.zeros(len(stamps), bool)
    for number in np.unique(process):
        own = process == number
        warm |= own & (begin > begin[own].min())
    return stamps[warm] if warm.any() else stamps


def timed(tower: TowerConfig, precision: str, zero: float) -> ModelMaker:
    """Maker of a tower whose features follow (begin, end, process), times since `zero`."""

    # Workers cannot import this file; a class inside a function travels to them whole.
    class Timed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower = open_tower(tower)

        def forward(self, pixels: Tensor) -> Tensor:
            began = time.time() - zero
            features = self.tower(pixels)
            row = torch.tensor([began, time.time() - zero, float(os.getpid())])
            return torch.cat([row.repeat(len(pixels), 1), features], dim=1)

    def make(device: torch.device) -> ViewVectors:
        model = Timed()
        prepare_for_inference(model, model.tower, device, precision)
        compile_for_batches(model, device)
        return ViewVectors(model, ["plain"])

    return make


def theirs(
    options: Options, tower: TowerConfig, files: list[bytes], dtype: torch.dtype
) -> tuple[float, np.ndarray]:
    """Run transformers' pipeline on the same files: pictures/s and features."""
    square = {"height": options.size, "width": options.size}
    extract = pipeline(
        "image-feature-extraction",
        model=CLIPVisionModel.from_pretrained(tower.weights, dtype=dtype).eval(),
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": options.size}, crop_size=square
        ),
        batch_size=options.batch_size,
        device="cpu",
    )
    pictures = [Image.open(BytesIO(data)).convert("RGB") for data in files]
    extract(pictures[:2], pool=True, return_tensors=True)
    began = time.perf_counter()
    opened = [Image.open(BytesIO(data)).convert("RGB") for data in files]
    outputs = extract(opened, pool=True, return_tensors=True)
    seconds = time.perf_counter() - began
    return len(files) / seconds, torch.cat(list(outputs)).float().numpy()


def check_same(features: np.ndarray, expected: np.ndarray, name: str) -> None:
    """Raise AssertionError for features that point elsewhere; bf16 keeps about three digits."""
    lengths = np.linalg.norm(features, axis=1) * np.linalg.norm(expected, axis=1)
    cosine = (features * expected).sum(axis=1) / lengths
    assert cosine.min() > 0.999, f"{name}: cosine {cosine.min():.4f}"


def run(options: Options) -> dict[str, float]:
    """Measure and print the table; return rates in pictures a second."""
    with tempfile.TemporaryDirectory() as folder:
        material = Material(
            rows=options.rows, size=options.size, layers=options.layers, width=options.width
        )
        tower = write_tower(material, Path(folder) / "tower")
        shards = write_shards(options, f"{folder}/shards")
        table = shards.read_tables("train/", ["id", "image"]).slice(0, options.theirs)
        files = table["image"].to_pylist()
        pixels = np.stack([images.decode(data) for data in files])
        with cluster.connect():
            processes = actor_count(0)
            before, expected = bare(options, tower, pixels, processes)
            steady, whole, by_id = staged(options, tower, shards)
            after, _ = bare(options, tower, pixels, processes)
        alone, _ = bare(options, tower, pixels, 1)
        check_same(np.stack([by_id[i] for i in table["id"].to_pylist()]), expected, "stage")
        rates = {
            "bare model": (before + after) / 2,
            "bare model, one process": alone,
            "stage": steady,
            "stage with start": whole,
        }
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            rates[f"transformers {name}"], other = theirs(options, tower, files, dtype)
            check_same(other, expected, name)
    ceiling = rates["bare model"]
    cli.show(
        f"{options.rows} pictures of {options.size} px, {options.layers} layers x {options.width}",
        ["", "pictures/s", "of the bare model"],
        [[name, f"{rate:.1f}", f"{rate / ceiling:.1%}"] for name, rate in rates.items()],
    )
    return rates


if __name__ == "__main__":
    run(tyro.cli(Options, description=__doc__))
