"""One MiniLM vector per distinct prompt: rows-*.parquet.

Prompts with many pictures come first: that order is also the one in which near duplicates are kept.
A killed run goes on with the files that have no receipt yet.
"""

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from img2prompt.artifact import Artifact, Draft, join, open_uri
from img2prompt.config import TargetsConfig
from img2prompt.data.vectors import VECTOR, vector_column
from img2prompt.model.text import PromptEncoder
from img2prompt.stages.progress import Progress

STAGE = "targets"
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


def run(config: TargetsConfig, clean: Artifact, out: str) -> Artifact:
    """Encode the distinct prompts, by pictures (most first), then prompt_id.

    Counts `prompts`, `pictures` and `cut`.
    """
    draft = Draft.open(out, STAGE, config, {"clean": clean.fingerprint})
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
        cut=sum(_count_cut(join(out, name)) for name in parts),
    )


def _distinct(clean: Artifact) -> pa.Table:
    """prompt_id, prompt, pictures; in the declared order."""
    rows = clean.read_tables("rows", columns=["prompt_id", "prompt"])
    counted = rows.group_by(["prompt_id", "prompt"]).aggregate([([], "count_all")])
    counted = counted.rename_columns({"count_all": "pictures"})
    return counted.sort_by([("pictures", "descending"), ("prompt_id", "ascending")])


def _encode_parts(draft: Draft, config: TargetsConfig, parts: dict[str, pa.Table]) -> None:
    if not parts:
        return
    encoder = PromptEncoder(config.encoder, "cuda" if torch.cuda.is_available() else "cpu")
    progress = Progress("targets", total=sum(map(len, parts.values())))
    for name, part in parts.items():
        prompts = part["prompt"].to_pylist()
        part = part.append_column("target", vector_column(encoder.encode(prompts)))
        part = part.append_column("cut", pa.array(encoder.is_cut(prompts)))
        draft.write_table(name, part.cast(SCHEMA))
        progress.add(len(prompts))


def _count_cut(uri: str) -> int:
    fs, path = open_uri(uri)
    table = pq.read_table(path, columns=["cut"], filesystem=fs, partitioning=None)
    return int(table["cut"].to_numpy().sum())
