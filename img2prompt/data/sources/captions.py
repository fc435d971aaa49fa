"""One caption for each picture, where a source has several: a list of them, or several rows."""

import ast
import hashlib
import json
import posixpath
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from img2prompt.config.sources import PictureSource
from img2prompt.data.hashed import HashedSet
from img2prompt.data.sources import files
from img2prompt.data.sources.portions import in_portions
from img2prompt.data.sources.rows import Rejected, Row

_LONGEST_LIST = 1 << 20  # characters
_ROWS_AT_ONCE = 4096


def choose_caption(value: Any, source: PictureSource, row_id: str) -> Any:
    """Return one caption where a prompt is a list of texts, else the value.

    Lists may be written as text, in JSON or as Python prints them. Blank captions do not count.
    """
    captions = _captions(value)
    if captions is None:
        return value
    usable = [caption for caption in captions if caption.strip()]
    return usable[draw(source, row_id, len(usable))] if usable else ""


def draw(source: PictureSource, name: str, count: int) -> int:
    """Return which of `count` captions a picture gets, by the source's option and seed."""
    if source.captions == "first":
        return 0
    digest = hashlib.sha256(f"{source.captions_seed}\0{name}".encode("utf-8", "surrogateescape"))
    return int.from_bytes(digest.digest()[:8], "big") % count


def _captions(value: Any) -> list[str] | None:
    if isinstance(value, str):
        text = value.strip()
        if not (text.startswith("[") and text.endswith("]")) or len(text) > _LONGEST_LIST:
            return None
        value = _parsed(text)
    if not isinstance(value, list | tuple | np.ndarray):
        return None
    captions = list(value)
    return captions if all(isinstance(caption, str) for caption in captions) else None


def _parsed(text: str) -> Any:
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return None


def one_row_a_picture(
    read_rows: Callable[[], Iterable[Row | Rejected]], source: PictureSource
) -> Iterator[Row | Rejected]:
    """Yield the rows less those with further captions of a picture, which are counted in one row.

    Args:
        read_rows: returns the rows from the first on. It is called twice to draw captions, because
            their number must be known: memory is then 200 bytes a picture, else 8.
        source: says which caption is used.
    """
    choose = _FirstOnly() if source.captions == "first" else _Drawn(read_rows(), source)
    further, example = 0, ""
    for piece in in_portions(read_rows(), _ROWS_AT_ONCE):
        usable = [row for row in piece if isinstance(row, dict)]
        chosen = iter(choose.are_chosen(usable))
        for row in piece:
            if isinstance(row, Rejected) or next(chosen):
                yield row
                continue
            further += 1
            example = example or row["id"]
    if further:
        rows = "1 row lists" if further == 1 else f"{further} rows list"
        yield Rejected(
            f"{source.name}/*further captions",
            f"further caption: {rows} a picture that another row lists, such as {example}; used: "
            f"the {source.captions} caption of each (--sources.N.captions)",
            further,
        )


def _picture(row: Row) -> str:
    return f"{row['uri']}\0{row['member']}"


class _FirstOnly:
    """Chooses the first row of each picture."""

    def __init__(self) -> None:
        self._seen = HashedSet()

    def are_chosen(self, rows: list[Row]) -> list[bool]:
        return self._seen.add([_picture(row) for row in rows]).tolist()


class _Drawn:
    """Chooses a drawn row of each picture, by its path in the source's folder.

    So the choice is the same wherever the folder is.
    """

    def __init__(self, rows: Iterable[Row | Rejected], source: PictureSource) -> None:
        self._source = source
        pictures = [files.absolute(source.pictures)] if source.pictures else []
        self._folders = [*pictures, source.path, posixpath.dirname(source.path)]
        self._counts = Counter(_hash(_picture(row)) for row in rows if isinstance(row, dict))
        self._seen: Counter[int] = Counter()

    def are_chosen(self, rows: list[Row]) -> list[bool]:
        return [self._is_chosen(row) for row in rows]

    def _is_chosen(self, row: Row) -> bool:
        key = _hash(_picture(row))
        number = self._seen[key]
        self._seen[key] += 1
        name = f"{self._name(row['uri'])}\0{row['member']}"
        return number == draw(self._source, name, self._counts[key])

    def _name(self, uri: str) -> str:
        names = (files.relative(folder, uri) for folder in self._folders)
        return next((name for name in names if name != uri), uri)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
