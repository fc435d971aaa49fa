"""One MiniLM vector per distinct prompt: rows-*.parquet.

Prompts with many pictures come first: that order is also the one in which near duplicates are kept.
Tasks on CPUs tokenise, actors (one per GPU, or per CPU where there is none) encode. A killed run
goes on with the files that have no receipt yet.
"""

import contextlib
import itertools
import time
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch

from img2prompt.artifact import Artifact, Draft
from img2prompt.config.prepare import TargetsConfig
from img2prompt.data.vectors import VECTOR, vector_column
from img2prompt.distributed import cluster
from img2prompt.distributed.progress import Progress, StepTimes
from img2prompt.distributed.tasks import run_bounded
from img2prompt.model.text import PromptEncoder, Tokens, check_model, tokenise
from img2prompt.storage import join, read_table
from img2prompt.workspace import Stage

PROMPTS_PER_FILE = 20_000
SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("prompt", pa.string()),
        ("pictures", pa.int32()),
        ("target", VECTOR),
        ("cut", pa.bool_()),
    ]
)
"""`pictures`: how many rows have this prompt. `cut`: longer than the encoder reads."""


class _Encoder:
    """A batch goes through with its name and the seconds that its tokenising took."""

    def __init__(self, folder: str) -> None:
        self._encoder = PromptEncoder(folder, "cuda" if torch.cuda.is_available() else "cpu")

    def encode(
        self, name: str, tokenised: tuple[Tokens, float]
    ) -> tuple[str, np.ndarray, np.ndarray, dict[str, float]]:
        """Name, vectors (N, 384), which prompts are cut (N,), and the seconds of the steps."""
        tokens, seconds = tokenised
        began = time.perf_counter()
        with _one_thread():
            vectors = self._encoder.encode_tokens(tokens)
        taken = {"tokenise": seconds, "encode": time.perf_counter() - began}
        return name, vectors, tokens.cut, taken


def run(config: TargetsConfig, clean: Artifact, out: str) -> Artifact:
    """Encode the distinct prompts, by pictures (most first), then prompt_id.

    Counts `prompts`, `pictures` and `cut`.
    """
    inputs = {"clean": clean.fingerprint}
    draft = Draft.open(out, Stage.TARGETS, config, inputs, lambda: check_model(config.encoder))
    if finished := draft.finished():
        return finished
    prompts = _distinct(clean)
    parts = {
        f"rows-{number:05d}.parquet": prompts.slice(start, PROMPTS_PER_FILE)
        for number, start in enumerate(range(0, len(prompts), PROMPTS_PER_FILE))
    }
    done = draft.receipts()
    _encode_parts(draft, config, {name: parts[name] for name in parts if name not in done})
    return draft.publish(
        prompts=len(prompts),
        pictures=int(prompts["pictures"].to_numpy().sum()),
        cut=sum(
            int(read_table(join(out, name), ["cut"])["cut"].to_numpy().sum()) for name in parts
        ),
    )


def _distinct(clean: Artifact) -> pa.Table:
    """prompt_id, prompt, pictures; in the declared order. Memory is that of the distinct ones."""
    counted = pa.table({"prompt_id": [], "prompt": [], "pictures": []}, SCHEMA.remove(4).remove(3))
    for name in clean.names("rows"):
        rows = clean.read_table(name, columns=["prompt_id", "prompt"])
        ones = rows.append_column("pictures", pa.array(np.ones(len(rows), np.int32)))
        both = pa.concat_tables([counted, ones]).group_by(["prompt_id", "prompt"])
        sums = both.aggregate([("pictures", "sum")]).rename_columns({"pictures_sum": "pictures"})
        counted = sums.select(counted.column_names).cast(counted.schema)
    return counted.sort_by([("pictures", "descending"), ("prompt_id", "ascending")])


def _encode_parts(draft: Draft, config: TargetsConfig, parts: dict[str, pa.Table]) -> None:
    """Write each part with its vectors as soon as it has them."""
    if not parts:
        return
    workers = min(_most_encoders(), len(parts))
    progress = Progress("targets", total=sum(map(len, parts.values())))
    slots = {"tokenise": int(cluster.resources().cpus), "encode": workers, "write": 1}
    times = StepTimes("targets", slots, "prompts")
    encode = _encode_here if len(parts) == 1 else _encode_by_actors
    with contextlib.closing(encode(config.encoder, parts, workers)) as encoded:
        for name, vectors, cut, seconds in encoded:
            part = parts[name].append_column("target", vector_column(vectors))
            with times.measure("write"):
                draft.write_table(name, part.append_column("cut", pa.array(cut)).cast(SCHEMA))
            times.add_rows(len(part), seconds)
            progress.add(len(part))
    times.keep(draft)


def _most_encoders() -> int:
    there = cluster.resources()
    tokenising = 1  # CPU beside those of the encoders
    return int(there.gpus) or max(1, int(there.cpus) - tokenising)


def _encode_here(folder: str, parts: dict[str, pa.Table], workers: int) -> Generator[Any]:
    """In this process: an actor takes longer to start than one file takes to encode."""
    encoder = _Encoder(folder)
    for name, part in parts.items():
        yield encoder.encode(name, _tokenise(part["prompt"].to_pylist(), folder))


def _encode_by_actors(folder: str, parts: dict[str, pa.Table], workers: int) -> Generator[Any]:
    """Each part goes through a tokenising task and one of the encoders, in turn."""
    gpus = cluster.resources().gpus
    made = ray.remote(_Encoder).options(
        num_gpus=1 if gpus else 0,
        num_cpus=0 if gpus else 1,
        max_restarts=3,
        max_task_retries=3,
    )
    encoders: list[Any] = [made.remote(folder) for _ in range(workers)]
    start = ray.remote(_tokenise).options(num_cpus=1)
    under_way = (
        encoder.encode.remote(name, start.remote(part["prompt"].to_pylist(), folder))
        for (name, part), encoder in zip(parts.items(), itertools.cycle(encoders), strict=False)
    )
    try:
        yield from run_bounded(under_way, workers)
    finally:
        for encoder in encoders:
            ray.kill(encoder)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Sums come out the same to the last bit however many cores there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _tokenise(prompts: list[str], folder: str) -> tuple[Tokens, float]:
    began = time.perf_counter()
    return tokenise(prompts, folder), time.perf_counter() - began
