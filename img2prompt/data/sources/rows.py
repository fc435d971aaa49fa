"""Index rows, and rejected rows with a reason, which are the same for every source."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from img2prompt.data import images
from img2prompt.data.sources.metadata.base import number, whole

INDEX_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("prompt", pa.string()),
        ("uri", pa.string()),
        ("member", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("generator", pa.string()),
        ("seed", pa.int64()),
        ("steps", pa.int32()),
        ("cfg", pa.float32()),
        ("sampler", pa.string()),
        ("nsfw", pa.float32()),
    ]
)
"""One picture: `uri` and `member` (a part of the file, or empty) are for `read_pictures`, width and
height in pixels of the upright picture. Unknown settings are null, or empty where they are text;
`nsfw` is the largest of the source's scores, 0 (harmless) to 1, 2 for DiffusionDB's blurred."""

REJECTED_SCHEMA = pa.schema([("id", pa.string()), ("reason", pa.string())])

FILE_COLUMNS = ("file", "file_name", "filename", "image")
"""Columns that may hold the name of a table's pictures; the first that is present counts."""

PROMPT_COLUMNS = ("prompt", "caption", "text")
"""Columns that may hold a table's prompt; the first that is present counts."""

_STEPS = ("steps", "step")
_CFG = ("cfg", "cfg_scale", "guidance_scale")
_NSFW = ("nsfw", "image_nsfw", "prompt_nsfw")
SETTINGS = ("generator", "seed", *_STEPS, *_CFG, "sampler", *_NSFW)
"""Columns that are read beside the prompt, where a table has them."""

_NOTHING: Mapping[str, Any] = MappingProxyType({})
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Rejected:
    """A row, or several alike, that cannot be used."""

    id: str
    reason: str
    """`kind: detail`, where the detail names the value and what is allowed."""
    count: int = 1
    """Files or rows that it stands for."""

    @property
    def kind(self) -> str:
        """The part before the colon, by which rejected rows are counted."""
        return self.reason.partition(":")[0]


Row = dict[str, Any]
"""A row of INDEX_SCHEMA. Between a reader and `with_sizes`, width and height may still be 0."""


def new_row(
    row_id: str,
    source: str,
    prompt: Any,
    uri: str,
    member: str = "",
    *,
    settings: Mapping[str, Any] = _NOTHING,
    size: tuple[int, int] = (0, 0),
) -> Row | Rejected:
    """Return the row of a picture, or a rejected row when its prompt cannot be used.

    Of `settings` the names in SETTINGS are used, in the types of INDEX_SCHEMA; values that do not
    fit count as unknown. `size`: width and height in pixels.
    """
    if reason := prompt_reason(prompt):
        return Rejected(row_id, reason)
    return {
        "id": printable(row_id),
        "source": printable(source),
        "prompt": prompt,
        "uri": uri,
        "member": member,
        "width": size[0],
        "height": size[1],
        "generator": _text(settings.get("generator")),
        "seed": whole(settings.get("seed")),
        "steps": _small(_first(settings, _STEPS)),
        "cfg": number(_first(settings, _CFG)),
        "sampler": _text(settings.get("sampler")),
        "nsfw": _largest(settings),
    }


def prompt_reason(prompt: Any) -> str | None:
    """Return why a value of a prompt column is no readable text, or None."""
    if prompt is None:
        return "empty prompt: None; allowed: visible text"
    if not isinstance(prompt, str):
        return f"no text: the prompt is {str(prompt)[:80]!r}; allowed: text"
    if not prompt.strip():
        return f"empty prompt: {prompt[:80]!r}; allowed: visible text"
    return undecodable("prompt", prompt)


def undecodable(column: str, text: str) -> str | None:
    """Return a reason when a text (read with `surrogateescape`) is not valid UTF-8, else None."""
    match = _SURROGATE.search(text)
    if match is None:
        return None
    code, at = ord(match[0]), match.start() + 1
    unit = f"byte {code & 0xFF:#x}" if 0xDC80 <= code <= 0xDCFF else f"half a character {code:#x}"
    return f"undecodable {column}: {unit} at character {at}; allowed: UTF-8"


def printable(text: str) -> str:
    """Return the text with characters that are not valid UTF-8 written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def _first(settings: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((settings[name] for name in names if settings.get(name) is not None), None)


def _text(value: Any) -> str:
    return printable(value) if isinstance(value, str) else ""


def _small(value: Any) -> int | None:
    integer = whole(value)
    return integer if integer is not None and abs(integer) < 2**31 else None


def _largest(settings: Mapping[str, Any]) -> float | None:
    scores = [number(settings.get(name)) for name in _NSFW]
    return max((score for score in scores if score is not None), default=None)


def sized(row: Row, width: int, height: int) -> Row | Rejected:
    """Return the row with its picture's size, or a rejected row when that is absurdly large."""
    if reason := images.size_reason(width, height, images.LARGEST_MEGAPIXELS):
        return Rejected(row["id"], f"picture size: {reason}")
    return {**row, "width": width, "height": height}


def unread_picture(row_id: str, where: str, error: Exception) -> Rejected:
    """Return the rejected row of a picture at `where` that could not be read."""
    if isinstance(error, FileNotFoundError):
        return Rejected(row_id, f"missing picture: {where} does not exist")
    if isinstance(error, images.LargePicture):
        return Rejected(row_id, f"picture size: {where}: {error}")
    return Rejected(row_id, f"unreadable picture: {where}: {error}")


def rejected_table(rejected: Iterable[Rejected]) -> pa.Table:
    """Return rejected rows as a table of REJECTED_SCHEMA."""
    rows = [{"id": printable(row.id), "reason": printable(row.reason)} for row in rejected]
    return pa.Table.from_pylist(rows, schema=REJECTED_SCHEMA)


def count_kinds(rejected: Iterable[Rejected]) -> dict[str, int]:
    """Return the number of rejected files or rows of each kind, the most frequent first."""
    counts: Counter[str] = Counter()
    for row in rejected:
        counts[row.kind] += row.count
    return dict(counts.most_common())
