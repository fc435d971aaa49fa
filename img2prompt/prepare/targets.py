"""clean/ -> targets/: one MiniLM vector per distinct prompt, in rows-*.parquet.

Prompts with many pictures come first; near duplicates are kept in this order too. Tasks on CPUs
tokenise, actors (one per GPU, or per CPU without GPUs) encode. A killed run resumes with the files
that have no receipt yet.
"""

import contextlib
import itertools
import time
from collections.abc import Generator
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch

from img2prompt.artifact import Artifact
from img2prompt.config.prepare import TargetsConfig
from img2prompt.data.vectors import VECTOR, require_finite, vector_column
from img2prompt.distributed import cluster
from img2prompt.distributed.progress import Progress, StepTimes
from img2prompt.distributed.tasks import run_bounded
from img2prompt.draft import Draft
from img2prompt.model.inference import one_thread
from img2prompt.model.text import PromptEncoder, Tokens, check_model, tokenise
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
"""`pictures`: number of rows with this prompt. `cut`: the prompt is longer than the encoder reads,
so its end has no effect on the target."""


class _Encoder:
    """Encodes batches, in an actor or in this process."""

    def __init__(self, folder: str) -> None:
        self._encoder = PromptEncoder(folder, "cuda" if torch.cuda.is_available() else "cpu")

    def encode(
        self, name: str, tokenised: tuple[Tokens, float]
    ) -> tuple[str, np.ndarray, np.ndarray, dict[str, float]]:
        """Encode one batch, given with the seconds that tokenising it took.

        Returns:
            name, vectors (N, 384), which prompts are cut (N,), and the seconds by step.
        """
        tokens, seconds = tokenised
        began = time.perf_counter()
        with one_thread():
            vectors = self._encoder.encode_tokens(tokens)
        taken = {"tokenise": seconds, "encode": time.perf_counter() - began}
        return name, vectors, tokens.cut, taken


def run(config: TargetsConfig, clean: Artifact, out: str) -> Artifact:
    """Encode the distinct prompts, ordered by pictures (most first), then by prompt_id.

    Counts `prompts`, `pictures` and `cut`.

    Raises:
        UserError: the folder of the encoder has no model, or a vector is non-finite.
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
        cut=sum(int(draft.read_table(name, ["cut"])["cut"].to_numpy().sum()) for name in parts),
    )


def _distinct(clean: Artifact) -> pa.Table:
    """Count the pictures of each distinct prompt; memory is that of the distinct prompts."""
    counted = pa.table({"prompt_id": [], "prompt": [], "pictures": []}, SCHEMA.remove(4).remove(3))
    for name in clean.names("rows"):
        rows = clean.read_table(name, columns=["prompt_id", "prompt"])
        ones = rows.append_column("pictures", pa.array(np.ones(len(rows), np.int32)))
        both = pa.concat_tables([counted, ones]).group_by(["prompt_id", "prompt"])
        sums = both.aggregate([("pictures", "sum")]).rename_columns({"pictures_sum": "pictures"})
        counted = sums.select(counted.column_names).cast(counted.schema)
    return counted.sort_by([("pictures", "descending"), ("prompt_id", "ascending")])


def _encode_parts(draft: Draft, config: TargetsConfig, parts: dict[str, pa.Table]) -> None:
    """Encode the parts, and write each one as soon as it has its vectors."""
    if not parts:
        return
    workers = min(_most_encoders(), len(parts))
    progress = Progress("targets", total=sum(map(len, parts.values())))
    slots = {"tokenise": int(cluster.resources().cpus), "encode": workers, "write": 1}
    times = StepTimes("targets", slots, "prompts")
    encode = _encode_here if len(parts) == 1 else _encode_by_actors
    with contextlib.closing(encode(config.encoder, parts, workers)) as encoded:
        for name, vectors, cut, seconds in encoded:
            prompts = parts[name]["prompt"].to_pylist()
            require_finite(vectors, prompts, f"targets by the encoder {config.encoder!r}")
            part = parts[name].append_column("target", vector_column(vectors))
            with times.measure("write"):
                draft.write_table(name, part.append_column("cut", pa.array(cut)).cast(SCHEMA))
            times.add_rows(len(part), seconds)
            progress.add(len(part))
    times.keep(draft)


def _most_encoders() -> int:
    resources = cluster.resources()
    tokenising = 1  # CPU that is left for the tokenising tasks
    return int(resources.gpus) or max(1, int(resources.cpus) - tokenising)


def _encode_here(folder: str, parts: dict[str, pa.Table], workers: int) -> Generator[Any]:
    """Encode in this process: one file takes less time than the start of an actor."""
    encoder = _Encoder(folder)
    for name, part in parts.items():
        yield encoder.encode(name, _tokenise(part["prompt"].to_pylist(), folder))


def _encode_by_actors(folder: str, parts: dict[str, pa.Table], workers: int) -> Generator[Any]:
    """Encode each part with a tokenising task and one of the actors, which take turns."""
    gpus = cluster.resources().gpus
    actor = ray.remote(_Encoder).options(
        num_gpus=1 if gpus else 0,
        num_cpus=0 if gpus else 1,
        max_restarts=3,
        max_task_retries=3,
    )
    encoders: list[Any] = [actor.remote(folder) for _ in range(workers)]
    tokenise_part = ray.remote(_tokenise).options(num_cpus=1)
    under_way = (
        encoder.encode.remote(name, tokenise_part.remote(part["prompt"].to_pylist(), folder))
        for (name, part), encoder in zip(parts.items(), itertools.cycle(encoders), strict=False)
    )
    try:
        yield from run_bounded(under_way, workers)
    finally:
        for encoder in encoders:
            ray.kill(encoder)


def _tokenise(prompts: list[str], folder: str) -> tuple[Tokens, float]:
    began = time.perf_counter()
    return tokenise(prompts, folder), time.perf_counter() - began
