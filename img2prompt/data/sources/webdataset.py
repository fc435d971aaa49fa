"""WebDataset tars: files that share a key are one sample, `a.jpg` with `a.txt` or `a.json`.

A tar is scanned once, from header to header; a picture's member name is its byte offset and size,
so that it is one ranged read later. The layout is that of github.com/webdataset/webdataset; the
members of a sample may come in any order.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import chain
from typing import Any

from img2prompt.config.sources import PictureSource
from img2prompt.data import images
from img2prompt.data.sources import files
from img2prompt.data.sources.base import Format
from img2prompt.data.sources.captions import choose_caption
from img2prompt.data.sources.folder import LARGEST_TEXT, decode_text, file_names
from img2prompt.data.sources.left_out import LeftOut, with_left_out
from img2prompt.data.sources.listing import is_system_file
from img2prompt.data.sources.portions import in_portions
from img2prompt.data.sources.rows import (
    PROMPT_COLUMNS,
    SETTINGS,
    Rejected,
    Row,
    new_row,
    sized,
    unread_picture,
)
from img2prompt.data.sources.tar_members import Member, Sample, Scan, samples

_ENDS = (".tar", ".tar.gz", ".tgz")


def portions(source: PictureSource) -> Iterator[list[Any]]:
    """Yield the names of the tars, one by one; empty when the path is one."""
    left_out = LeftOut(source.name, ".tar")
    names = file_names(source.path, _is_read, left_out)
    return with_left_out(in_portions(names, 1), left_out)


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


def _is_read(name: str) -> bool:
    return name.endswith(_ENDS) and not is_system_file(name)


def _tar_rows(name: str, source: PictureSource) -> Iterator[Row | Rejected]:
    uri = files.inside(source.path, name) if name else source.path
    base = f"{source.name}/{name or uri.rpartition('/')[2]}"
    if not uri.endswith(".tar"):
        yield Rejected(base, "compressed tar: its pictures have no fixed offsets; unpack .gz")
        return
    try:
        left_out = LeftOut(base, "one picture a sample, with its .txt or .json")
        with files.SteadyFile(uri) as file, closing(Scan(file)) as scan:
            reader = _SampleReader(base, uri, source, scan)
            yield from map(reader.row, samples(scan.members(left_out), left_out))
            yield from left_out.rows()
            if scan.loss:
                yield Rejected(base, f"damaged tar: {scan.loss}; copy or download it again")
    except OSError as error:
        yield Rejected(base, f"unreadable tar: {uri}: {error}; samples that follow are not indexed")


class _SampleReader:
    """Turns the samples of a tar into rows."""

    def __init__(self, base: str, uri: str, source: PictureSource, scan: Scan) -> None:
        self.base, self.uri, self.source, self.scan = base, uri, source, scan

    def row(self, sample: Sample) -> Row | Rejected:
        row_id, picture = f"{self.base}/{sample.key}", sample.picture
        if picture is None:
            return Rejected(
                row_id,
                f"no picture: the sample contains {sorted(sample.ends)}; an ending begins at the "
                "first dot of a file's name (WebDataset's rule)",
            )
        try:
            prompt, settings = self._prompt(sample)
            member = f"{picture.offset}+{picture.size}"
            row = new_row(row_id, self.source.name, prompt, self.uri, member, settings=settings)
            return sized(row, *self.scan.probe(picture)) if isinstance(row, dict) else row
        except _NoText as error:
            return Rejected(row_id, str(error))
        except images.BadPicture as error:
            return unread_picture(row_id, f"{self.uri} {picture.name}", error)

    def _prompt(self, sample: Sample) -> tuple[Any, dict[str, Any]]:
        """Return the prompt and the settings."""
        content = self._json(sample.json) if sample.json else {}
        settings = {name: content[name] for name in SETTINGS if name in content}
        if sample.text and not self.source.prompt_column:
            return decode_text(self._text(sample.text)), settings
        names = [self.source.prompt_column] if self.source.prompt_column else PROMPT_COLUMNS
        for name in names:
            if name in content:
                return choose_caption(content[name], self.source, sample.key), settings
        raise _NoText(
            f"no prompt: the sample contains {sorted(sample.ends)}, its JSON "
            f"{sorted(content)[:20]}; needed: {' or '.join(names)} in the JSON, or .txt "
            "(--sources.N.prompt_column names another)"
        )

    def _json(self, member: Member) -> dict[str, Any]:
        try:
            content = json.loads(self._text(member))
        except (ValueError, RecursionError) as error:
            raise _NoText(f"bad JSON: {member.name}: {error}") from None
        if not isinstance(content, dict):
            raise _NoText(f"bad JSON: {member.name} is not an object")
        return content

    def _text(self, member: Member) -> bytes:
        if member.size > LARGEST_TEXT:
            reason = f"{member.name} has {member.size} bytes; allowed: {LARGEST_TEXT}"
            raise _NoText(f"no prompt: {reason}")
        return self.scan.read(member)


class _NoText(Exception):
    """A sample whose text cannot be used; the message is the reason."""
