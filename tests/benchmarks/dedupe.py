"""Compare the speed of exact de-duplication with that of the common faiss loop, on real texts.

The common loop asks faiss' IndexFlatIP for the 5,000 nearest rows of 5,000 queries at a time and
drops, for every row not dropped yet, the later rows at or above the threshold. Ours,
`data/similar/dedupe.py`, runs on the same vectors with the same number of threads. Both must keep
the same rows, otherwise the script stops and says how they differ: the loop sees 5,000 neighbours
at most, and decides by float32 products.

The loop takes equally long for each batch of queries. It ran in full for the table below;
`--batches N` runs only the first N, compares the kept rows of those, and multiplies their time.
Rows beyond the texts are blends of two texts' vectors, for ours only.

On 2 cores of an AMD EPYC (Zen 5, AVX-512 VNNI, 32 MB L3), 2 threads, torch 2.13, faiss-cpu 1.15.1,
threshold 0.85; both kept the same rows every time:

       rows     kept     ours   pairs compared/s     loop   times faster
     20,000   17,057   0.14 s             1.2e9    7.9 s             55
    100,000   73,589   1.27 s             3.0e9   78.8 s             62
    400,000  369,991  16.95 s             4.2e9        -              -   (blends)

N rows of which a share f is kept take f N^2 / 2R + 2e-6 N seconds at R pairs a second. For 2M rows,
f = 0.74 and R = 4.2e9 that is 6 minutes on these 2 cores; the loop would take 9 hours. On an H100
the limit would be the bounds, written and read once as float32: 1.5e12 pairs * 8 bytes / 3.3e12
bytes/s is 4 seconds, and about 10 are to be expected. Not measured on a GPU.

    python tests/benchmarks/dedupe.py --cache ~/vectors
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import torch
import tyro

from img2prompt import cli
from img2prompt.data.similar.dedupe import KeepFirst, keep_first
from img2prompt.data.text.normalise import normalise
from img2prompt.data.vectors import exact_cosine

REAL = Path(__file__).parents[3] / "shared" / "data" / "prompts"
FILES = ("real_prompts.txt", "flavors.txt")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Inputs and sizes of the comparison."""

    cache: Path
    """Folder outside the repository that caches the vectors."""
    prompts: Path = REAL
    """Folder of real_prompts.txt and flavors.txt."""
    rows: tuple[int, ...] = (20_000, 100_000)
    blends: tuple[int, ...] = ()
    """More numbers of rows, filled up with blends of texts, for ours only."""
    threshold: float = 0.85
    neighbours: int = 5000
    queries: int = 5000
    """Rows in a batch of the loop."""
    batches: int = 0
    """Batches of the loop to run; 0: all."""
    threads: int = 2
    repeats: int = 5
    """Runs of ours; the fastest counts."""


@dataclass(frozen=True)
class Loop:
    """Result of the common loop for the rows that it processed."""

    kept: np.ndarray
    """bool (rows,)."""
    cut: int
    """Rows with more near rows than the loop can see."""
    seconds: float
    """Time for all rows, assuming that each batch costs the same."""


def common_loop(vectors: np.ndarray, options: Options) -> Loop:
    """Run keep-first as it is usually written."""
    began = time.perf_counter()
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    starts = range(0, len(vectors), options.queries)
    measured = starts[: options.batches or None]
    kept, cut = np.ones(len(vectors), bool), 0
    for start in measured:
        batch = vectors[start : start + options.queries]
        scores, numbers = index.search(batch, min(options.neighbours, len(vectors)))
        near = scores >= options.threshold
        cut += int(near[:, -1].sum()) if near.shape[1] < len(vectors) else 0
        for row in range(len(batch)):
            if kept[start + row]:
                others = numbers[row, near[row]]
                kept[others[others > start + row]] = False
    seconds = (time.perf_counter() - began) * len(starts) / len(measured)
    return Loop(kept[: measured[-1] + options.queries], cut, seconds)


def texts(options: Options) -> list[str]:
    """Return the distinct lines in the order of the files."""
    lines = [line for name in FILES for line in (options.prompts / name).read_text().splitlines()]
    return list(dict.fromkeys(filter(None, map(normalise, lines))))[: max(options.rows)]


def encode(options: Options) -> np.ndarray:
    """Return the vectors (N, 384) of the texts, cached after the first call."""
    file = options.cache / f"texts-{max(options.rows)}.npy"
    if not file.exists():
        from img2prompt.model.text import PromptEncoder

        options.cache.mkdir(parents=True, exist_ok=True)
        np.save(file, PromptEncoder().encode(texts(options)))
    return np.load(file)


def blend(vectors: np.ndarray, rows: int) -> np.ndarray:
    """Return the vectors, filled up to `rows` with normalised sums of two of them."""
    rng = np.random.default_rng(0)
    pairs = rng.integers(len(vectors), size=(rows - len(vectors), 2))
    sums = vectors[pairs[:, 0]] + vectors[pairs[:, 1]]
    sums /= np.linalg.norm(sums, axis=1, keepdims=True)
    return np.concatenate([vectors, sums])


def timed(work: Callable[[], KeepFirst], repeats: int) -> tuple[KeepFirst, float]:
    """Return the result and the seconds of the fastest run."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - began)
    return result, min(seconds)


def compared(result: KeepFirst) -> int:
    """Count pairs of a row and a row kept before it: those that an exact answer must rule out."""
    return int(np.searchsorted(result.kept, np.arange(len(result.keeper))).sum())


def check(vectors: np.ndarray, result: KeepFirst, loop: Loop, threshold: float) -> None:
    """Refuse a result that breaks the rule or differs from the loop's.

    Raises:
        AssertionError: with the difference.
    """
    dropped = np.setdiff1d(np.arange(len(vectors)), result.kept)
    keepers = result.keeper[dropped]
    assert (keepers < dropped).all(), "a keeper comes after its row"
    assert np.isin(keepers, result.kept).all(), "a keeper was dropped"
    score = exact_cosine(vectors[dropped], vectors[keepers])
    assert (score == result.score[dropped]).all(), "a score is not the float64 product"
    assert (score >= threshold).all(), "a row was dropped for one that is not near"
    differ = np.flatnonzero(np.isin(np.arange(len(loop.kept)), result.kept) != loop.kept)
    assert not len(differ), (
        f"{len(differ)} rows differ from the loop's, the first is {differ[0]}; the loop could not "
        f"see all neighbours of {loop.cut} rows"
    )


def run(options: Options) -> dict[int, float]:
    """Time both for each number of rows and print a table; return how many times ours is faster."""
    torch.set_num_threads(options.threads)
    faiss.omp_set_num_threads(options.threads)
    vectors = encode(options)
    keep_first(vectors[:1000], options.threshold)
    ratios, table = {}, []
    for rows in options.rows:
        some = vectors[:rows]
        result, ours = timed(lambda some=some: keep_first(some, options.threshold), options.repeats)
        loop = common_loop(some, options)
        check(some, result, loop, options.threshold)
        ratios[rows] = loop.seconds / ours
        share = f"{len(loop.kept):,} of {rows:,}"
        table.append(
            [*_cells(result, ours), f"{loop.seconds:,.1f} s", share, f"{ratios[rows]:.0f}"]
        )
    for rows in options.blends:
        some = blend(vectors, rows)
        result, ours = timed(lambda some=some: keep_first(some, options.threshold), 1)
        table.append([*_cells(result, ours), "", "", ""])
    cli.show(
        f"Keep-first at {options.threshold}, {options.threads} threads",
        ["rows", "kept", "ours", "pairs/s", "loop", "same kept rows in", "times faster"],
        table,
    )
    return ratios


def _cells(result: KeepFirst, seconds: float) -> list[object]:
    rate = f"{compared(result) / seconds / 1e9:.2f}e9"
    return [f"{len(result.keeper):,}", f"{len(result.kept):,}", f"{seconds:.2f} s", rate]


if __name__ == "__main__":
    run(tyro.cli(Options, description=__doc__))
