"""Measure one GPU with a ViT-L/14 of random weights, and with near duplicates.

- `features`: pictures a second of the frozen tower in 16 bits, eager and compiled, from tensors
  on the GPU, and from JPEG files in memory, which threads decode while the GPU works.
- `train`: pictures a second, share of the GPU's peak (MFU) and peak memory of whole training steps
  by the plain engine: a linear probe behind the running tower, the published layout with LoRA of
  rank 16, and all layers, eager and compiled.
- `dedupe`: seconds to find near duplicates among clustered random vectors.

Eager and compiled must agree, and so must both ways to the same pictures; de-duplication is
compared with plain float64 products over its first rows. Ray, DeepSpeed and faiss are not needed; a
part whose packages are missing is skipped with a message. Runs on a CPU too, and then measures the
CPU.

    python tests/benchmarks/gpu.py
    python tests/benchmarks/gpu.py --parts dedupe --vectors 100000 2000000
"""

import os
import time

import numpy as np
import tyro
from gpu_tower import Options, device, device_name, features, fits

from img2prompt import cli
from img2prompt.data.vectors import DIMENSIONS


def peak() -> float:
    """Return the device's peak FLOP/s in 16 bits; 0 if unknown."""
    try:
        from img2prompt.train.steplog import peak_of
    except ImportError as error:
        print(f"no MFU: {error}")
        return 0.0
    return peak_of(device())


def clustered(rows: int) -> np.ndarray:
    """Return unit vectors (rows, 384), about a third of them near duplicates of an earlier one."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((rows, DIMENSIONS), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    near = np.flatnonzero(rng.random(rows) < 0.4)
    near = near[near > 0]
    # A blend with weight w of another direction has a cosine of about 1 / sqrt(1 + w^2).
    weight = rng.uniform(0, 0.8, (len(near), 1)).astype(np.float32)
    vectors[near] = vectors[rng.integers(0, near)] + weight * vectors[near]
    vectors[near] /= np.linalg.norm(vectors[near], axis=1, keepdims=True)
    return vectors


def dedupe(options: Options) -> dict[int, tuple[float, int]]:
    """Return seconds and number of kept rows by number of vectors."""
    from img2prompt.data.similar.dedupe import keep_first

    few = clustered(options.checked)
    ours = keep_first(few, options.threshold).kept
    assert np.array_equal(ours, kept_plainly(few, options.threshold)), "other rows are kept"
    measured = {}
    for rows in options.vectors:
        vectors = clustered(rows)
        began = time.perf_counter()
        kept = len(keep_first(vectors, options.threshold).kept)
        measured[rows] = (time.perf_counter() - began, kept)
    return measured


def kept_plainly(vectors: np.ndarray, threshold: float) -> np.ndarray:
    """Run keep-first by products with all kept rows."""
    exact, kept = vectors.astype(np.float64), []
    buffer = np.empty_like(exact)
    for row, vector in enumerate(exact):
        if not kept or (buffer[: len(kept)] @ vector).max() < threshold:
            buffer[len(kept)] = vector
            kept.append(row)
    return np.array(kept)


def show_features(options: Options) -> None:
    rows = [
        [size, way, f"{rate:,.1f}"]
        for size in options.sizes
        for way, rate in features(options, size).items()
    ]
    title = f"{device_name()}, {os.cpu_count()} cores: features, batches of {options.embed_batch}"
    cli.show(title, ["pixels", "way", "pictures/s"], rows)


def show_fits(options: Options) -> None:
    rows, most = [], peak()
    for size in options.sizes:
        for (name, way), each in fits(options, size).items():
            share = f"{each.rate * each.flop / most:.1%}" if most else "-"
            memory = f"{each.memory:.1f}" if each.memory else "-"
            rows.append([size, name, way, f"{each.rate:,.1f}", share, memory])
    cli.show(
        f"{device_name()}: training, batches of {options.train_batch}",
        ["pixels", "plan", "way", "pictures/s", "MFU", "GiB"],
        rows,
    )


def show_dedupe(options: Options) -> None:
    rows = [
        [rows, f"{seconds:.2f}", kept, f"{rows * kept / 2 / seconds:.2g}"]
        for rows, (seconds, kept) in dedupe(options).items()
    ]
    columns = ["vectors", "seconds", "kept", "pairs/s"]
    cli.show(f"{device_name()}: near duplicates at {options.threshold}", columns, rows)


def run(options: Options) -> None:
    """Measure and print each part; report a part whose packages are not installed."""
    shows = {"features": show_features, "train": show_fits, "dedupe": show_dedupe}
    for part in options.parts:
        try:
            shows[part](options)
        except ImportError as error:
            print(f"{part} could not be run here: {error}")


if __name__ == "__main__":
    run(tyro.cli(Options, description=__doc__))
