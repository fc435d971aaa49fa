"""Compare writing and checking a submission with a row-by-row csv writer.

Both write the file, read it back and compare every line; row by row with Python's csv module. Both
files hold the same float32 values.

    python tests/benchmarks/submission.py
"""

import csv
import resource
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from img2prompt import cli
from img2prompt.predict.submission import HEADER, read_submission, write_submission


@dataclass(frozen=True, kw_only=True)
class Options:
    """Size of the comparison."""

    pictures: int = 16_000
    """As many as the competition's hidden test has."""
    seed: int = 0


def write_row_by_row(path: str, ids: Sequence[str], vectors: np.ndarray) -> None:
    """Write the file as it is usually written, with the digits that a float32 needs."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HEADER.split(","))
        for name, vector in zip(ids, vectors, strict=True):
            for number, value in enumerate(vector):
                writer.writerow([f"{name}_{number}", value])


def check_row_by_row(path: str, ids: Sequence[str], vectors: np.ndarray) -> None:
    """Read the file back and compare every line."""
    with open(path, newline="") as file:
        reader = csv.reader(file)
        next(reader)
        for name, vector in zip(ids, vectors, strict=True):
            for number, value in enumerate(vector):
                key, text = next(reader)
                assert (key, np.float32(text)) == (f"{name}_{number}", value)


def run(options: Options) -> float:
    """Print seconds, file size and peak memory; return how many times faster ours is."""
    vectors = np.random.default_rng(options.seed).normal(size=(options.pictures, 384))
    vectors = vectors.astype(np.float32)
    ids = [f"{number:09x}" for number in range(options.pictures)]
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = f"{folder}/ours.csv", f"{folder}/theirs.csv"
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        steps = [
            ("ours, written and checked", write_submission, ours),
            ("row by row, written", write_row_by_row, theirs),
            ("row by row, checked", check_row_by_row, theirs),
        ]
        rows, walls, memory = [], [], 0
        for name, step, path in steps:
            cpu, wall = time.process_time(), time.perf_counter()
            step(path, ids, vectors)
            walls.append(time.perf_counter() - wall)
            rows.append([name, f"{walls[-1]:.2f}", f"{time.process_time() - cpu:.2f}"])
            memory = memory or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        size = Path(ours).stat().st_size
        assert read_submission(theirs)[1].tobytes() == vectors.tobytes()
    title = f"{options.pictures} pictures, {size >> 20} MiB, {memory >> 10} MiB more at ours' peak"
    cli.show(title, ["step", "seconds", "seconds of CPU"], rows)
    print(f"times faster: {sum(walls[1:]) / walls[0]:.1f}")
    return sum(walls[1:]) / walls[0]


if __name__ == "__main__":
    run(tyro.cli(Options, description=__doc__))
