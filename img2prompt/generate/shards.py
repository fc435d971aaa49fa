"""Write one shard of pictures: a Parquet file that is a source, its rejected rows, its report.

The columns have DiffusionDB's names, and pictures are structs in the Hugging Face layout, so that
`prepare` and other programs read the files as they are. Encoding runs beside the device: while one
batch is made, the one before it is encoded.
"""

import functools
import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from img2prompt.data import images
from img2prompt.data.sources.portions import in_portions
from img2prompt.data.sources.rows import Rejected, rejected_table
from img2prompt.draft import Draft
from img2prompt.generate.estimate import Usage
from img2prompt.generate.pictures import Picture, PicturePipeline
from img2prompt.generate.plan import PictureRequest

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt_id", pa.string()),
        ("prompt", pa.string()),
        ("number", pa.int32()),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("seed", pa.int64()),
        ("step", pa.int32()),
        ("cfg", pa.float32()),
        ("sampler", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("image_nsfw", pa.float32()),
        ("generator", pa.string()),
    ]
)
"""`number`: which picture of its prompt, from 0. `image_nsfw`: score of the safety checker, null
without one. `generator`: the pipeline's class and the digest of its checkpoint."""

PICTURES, REJECTED, REPORTS = "pictures/", "rejected/", "reports/"
"""Beginnings of the names of a shard's three files."""

ROWS_PER_GROUP = 16
ENCODERS = 2
"""Threads that encode beside an actor's device."""


@dataclass(frozen=True)
class ShardReport:
    """Result of one shard."""

    pictures: int
    rejected: int
    seconds: float
    """Time that one device was busy with it."""
    bytes: int
    """Size of the encoded pictures."""

    @property
    def usage(self) -> Usage:
        return Usage(self.seconds, self.bytes)


def report_name(shard: int) -> str:
    """Return the name of a shard's last file, which marks it as complete."""
    return f"{REPORTS}{shard:06d}.json"


def write_shard(
    draft: Draft,
    shard: int,
    requests: Sequence[PictureRequest],
    pipeline: PicturePipeline,
    settings: dict[str, Any],
) -> ShardReport:
    """Make and write the pictures of a shard; `settings` are columns that all of them share."""
    began = time.perf_counter()
    rows: list[dict[str, Any]] = []
    rejected: list[Rejected] = []
    for request, row in _rows(requests, pipeline, settings, draft.config["encoding"]):
        if isinstance(row, str):
            rejected.append(Rejected(request.id, row))
        else:
            rows.append(row)
    size = sum(len(row["image"]["bytes"]) for row in rows)
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    draft.write_table(f"{PICTURES}{shard:06d}.parquet", table, ROWS_PER_GROUP)
    draft.write_table(f"{REJECTED}{shard:06d}.parquet", rejected_table(rejected))
    seconds = time.perf_counter() - began
    report = ShardReport(len(rows), len(rejected), seconds, size)
    draft.write_bytes(report_name(shard), json.dumps(asdict(report)).encode(), rows=len(rows))
    return report


def _rows(
    requests: Sequence[PictureRequest],
    pipeline: PicturePipeline,
    settings: dict[str, Any],
    encoding: str,
) -> Iterator[tuple[PictureRequest, dict[str, Any] | str]]:
    """Yield each request with its row of SCHEMA, or the reason why it has none."""
    encode = functools.partial(_row, settings=settings, encoding=encoding)
    waiting: list[tuple[PictureRequest, Future[dict[str, Any]] | str]] = []
    with ThreadPoolExecutor(ENCODERS) as pool:
        for batch in in_portions(requests, pipeline.batch_size):
            for request, result in zip(batch, pipeline.make(batch), strict=True):
                is_reason = isinstance(result, str)
                row = result if is_reason else pool.submit(encode, request, result)
                waiting.append((request, row))
        for request, row in waiting:
            yield request, row if isinstance(row, str) else row.result()


def _row(
    request: PictureRequest, picture: Picture, settings: dict[str, Any], encoding: Any
) -> dict[str, Any]:
    height, width, _ = picture.pixels.shape
    ending = "png" if encoding == "png" else "jpg"
    image = {"bytes": images.encode(picture.pixels, encoding), "path": f"{request.id}.{ending}"}
    return {
        **settings,
        "id": request.id,
        "prompt_id": request.prompt_id,
        "prompt": request.prompt,
        "number": request.number,
        "image": image,
        "seed": request.seed,
        "width": width,
        "height": height,
        "image_nsfw": picture.nsfw,
    }
