"""WebDataset tars: files that share a key are one sample, `a.jpg` with `a.txt` or `a.json`.

A tar is scanned once, from header to header; a picture's member name is its byte offset and size,
so that it is one ranged read later. The layout is that of github.com/webdataset/webdataset.
"""

import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import chain, groupby
from typing import Any

from img2prompt.config.sources import PictureSource
from img2prompt.data import images
from img2prompt.data.sources import files, listing
from img2prompt.data.sources.base import Format
from img2prompt.data.sources.containers import DAMAGES, HEADER_BYTES, Range
from img2prompt.data.sources.folder import LARGEST_TEXT, PICTURE_ENDS, decode_text
from img2prompt.data.sources.portions import in_portions
from img2prompt.data.sources.prefetch import probe
from img2prompt.data.sources.rows import (
    PROMPT_COLUMNS,
    SETTINGS,
    Rejected,
    Row,
    new_row,
    sized,
    unread_picture,
)

_REMOTE_BYTES = 8 << 20
"""Bytes of one read from an object store, where a request costs as much as a megabyte."""


def portions(source: PictureSource) -> Iterator[list[str]]:
    """Yield the names of the tars, one by one; empty when the path is one."""
    return in_portions(_tars(source.path), 1)


def list_rows(source: PictureSource, names: Iterable[str]) -> Iterator[Row | Rejected]:
    """Yield index rows of the tars, in the order of their samples."""
    return chain.from_iterable(_tar_rows(name, source) for name in names)


FORMAT = Format(
    "webdataset",
    ".tar files with a.jpg and a.txt or a.json",
    lambda layout: bool(layout.ending(".tar")),
    portions,
    list_rows,
)


def _tars(path: str) -> Iterator[str]:
    if listing.is_file(path):
        yield ""
        return
    for entry in listing.walk(path):
        if entry.name.endswith((".tar", ".tar.gz", ".tgz")):
            yield entry.name


def _tar_rows(name: str, source: PictureSource) -> Iterator[Row | Rejected]:
    uri = files.inside(source.path, name) if name else source.path
    base = f"{source.name}/{name or uri.rpartition('/')[2]}"
    if not uri.endswith(".tar"):
        yield Rejected(base, "compressed tar: its pictures have no fixed offsets; unpack .gz")
        return
    try:
        with files.SteadyFile(uri) as file, closing(_Scan(file)) as scan:
            for key, members in groupby(scan.members(), key=lambda info: _key(info.name)):
                yield _Sample(f"{base}/{key}", uri, source, scan).row(list(members))
            if scan.loss:
                yield Rejected(base, f"damaged tar: {scan.loss}; copy or download it again")
    except OSError as error:
        yield Rejected(base, f"unreadable tar: {uri}: {error}; samples that follow are not indexed")


def _key(name: str) -> str:
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


class _Scan:
    """The complete members of a tar, and what was lost."""

    def __init__(self, file: files.SteadyFile) -> None:
        size = HEADER_BYTES if file.local else _REMOTE_BYTES
        self.file, self.stream = file, io.BufferedReader(file, size)
        self.loss = ""

    def members(self) -> Iterator[tarfile.TarInfo]:
        """Yield the files in order. Then `loss` is set when the tar does not end as it should."""
        end = 0
        try:
            with tarfile.open(fileobj=self.stream, mode="r:") as tar:
                while (info := tar.next()) is not None:
                    tar.members = []  # type: ignore[assignment]  # it would keep all of them
                    end = tar.offset
                    if info.isreg() and info.offset_data + info.size > self.file.size:
                        self.loss = f"it ends at byte {self.file.size}, within {info.name}"
                        return
                    if info.isreg():
                        yield info
        except DAMAGES as error:
            self.loss = f"{error} after byte {end}"
            return
        # tarfile also ends at a bad header and where the file is cut off between two members.
        last = self.file.read_at(tarfile.BLOCKSIZE, end)
        if len(last) < tarfile.BLOCKSIZE or any(last):
            self.loss = f"it has {self.file.size} bytes and no end mark at byte {end}"

    def read(self, info: tarfile.TarInfo) -> bytes:
        self.stream.seek(info.offset_data)
        return self.stream.read(info.size)

    def probe(self, info: tarfile.TarInfo) -> tuple[int, int]:
        return probe(io.BufferedReader(Range(self.stream, info.offset_data, info.size)))

    def close(self) -> None:
        self.stream.close()


class _Sample:
    """The members that share a key, which become one row."""

    def __init__(self, row_id: str, uri: str, source: PictureSource, scan: _Scan) -> None:
        self.id, self.uri, self.source, self.scan = row_id, uri, source, scan

    def row(self, members: list[tarfile.TarInfo]) -> Row | Rejected:
        by_end = {_end(info.name): info for info in reversed(members)}
        picture = next((info for end, info in by_end.items() if end in PICTURE_ENDS), None)
        if picture is None:
            return Rejected(self.id, f"no picture: the sample contains {sorted(by_end)}")
        try:
            prompt, settings = self._prompt(by_end)
            member = f"{picture.offset_data}+{picture.size}"
            row = new_row(self.id, self.source.name, prompt, self.uri, member, settings=settings)
            return sized(row, *self.scan.probe(picture)) if isinstance(row, dict) else row
        except _NoText as error:
            return Rejected(self.id, str(error))
        except images.BadPicture as error:
            return unread_picture(self.id, f"{self.uri} {picture.name}", error)

    def _prompt(self, by_end: dict[str, tarfile.TarInfo]) -> tuple[Any, dict[str, Any]]:
        """Return the prompt and the settings."""
        content = self._json(by_end[".json"]) if ".json" in by_end else {}
        settings = {name: content[name] for name in SETTINGS if name in content}
        if ".txt" in by_end and not self.source.prompt_column:
            return decode_text(self._text(by_end[".txt"])), settings
        names = [self.source.prompt_column] if self.source.prompt_column else PROMPT_COLUMNS
        for name in names:
            if name in content:
                return content[name], settings
        raise _NoText(
            f"no prompt: the sample contains {sorted(by_end)}, its JSON {sorted(content)[:20]}; "
            f"needed: {' or '.join(names)} in the JSON, or .txt (--sources.N.prompt_column names "
            "another)"
        )

    def _json(self, info: tarfile.TarInfo) -> dict[str, Any]:
        try:
            content = json.loads(self._text(info))
        except (ValueError, RecursionError) as error:
            raise _NoText(f"bad JSON: {info.name}: {error}") from None
        if not isinstance(content, dict):
            raise _NoText(f"bad JSON: {info.name} is not an object")
        return content

    def _text(self, info: tarfile.TarInfo) -> bytes:
        if info.size > LARGEST_TEXT:
            raise _NoText(f"no prompt: {info.name} has {info.size} bytes; allowed: {LARGEST_TEXT}")
        return self.scan.read(info)


class _NoText(Exception):
    """A sample whose text cannot be used; the message is the reason."""


def _end(name: str) -> str:
    return "." + name.rpartition("/")[2].partition(".")[2].lower()
