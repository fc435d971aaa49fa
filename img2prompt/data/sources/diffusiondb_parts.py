"""The parts of DiffusionDB: `part-000001.zip` or `part-000001/`, with `part-000001.json` inside."""

import json
import posixpath
import re
import zipfile
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from img2prompt.data.hashed import HashedSet
from img2prompt.data.sources import files, listing
from img2prompt.data.sources.containers import Zip
from img2prompt.data.sources.folder import is_picture

PART = re.compile(r"part-(\d{6})(\.zip)?")
_ENCRYPTED = 0x1
_METHODS = {
    zipfile.ZIP_STORED: "stored",
    zipfile.ZIP_DEFLATED: "deflate",
    zipfile.ZIP_BZIP2: "bzip2",
    zipfile.ZIP_LZMA: "lzma",
}


@dataclass(frozen=True)
class Part:
    """One part: its number and location."""

    number: int
    uri: str
    folder: str = ""
    """Name of the folder that contains it, or empty."""

    @property
    def zipped(self) -> bool:
        return self.uri.endswith(".zip")

    @property
    def json(self) -> str:
        return f"{part_name(self.number)}.json"

    def location(self, prefix: str, name: str) -> tuple[str, str]:
        """Return `uri` and `member` of a picture."""
        if self.zipped:
            return self.uri, prefix + name
        return files.inside(self.uri, name), ""


def part_name(number: int) -> str:
    return f"part-{number:06d}"


def find_parts(path: str) -> tuple[list[Part], list[str]]:
    """Return the parts in a folder and its folders, and the names of other files.

    A zip takes precedence over a folder.
    """
    own = PART.fullmatch(path.rpartition("/")[2])
    if own:
        return [Part(int(own[1]), path)], []
    parts: dict[tuple[str, int], Part] = {}
    others: list[str] = []
    for name in listing.names(path):
        if not name.endswith("/") or PART.fullmatch(name[:-1]):
            if not _add(parts, path, "", name):
                others.append(name)
            continue
        for inner in listing.names(files.inside(path, name[:-1])):
            if not _add(parts, files.inside(path, name[:-1]), name, inner):
                others.append(name + inner)
    return [parts[key] for key in sorted(parts)], others


def _add(parts: dict[tuple[str, int], Part], parent: str, folder: str, name: str) -> bool:
    """Add a part; return whether the name is that of one."""
    matched = PART.fullmatch(name.rstrip("/"))
    if matched:
        number = int(matched[1])
        if matched[2] or (folder, number) not in parts:
            parts[folder, number] = Part(number, files.inside(parent, name.rstrip("/")), folder)
    return bool(matched)


@dataclass(frozen=True)
class Contents:
    """Contents of a part, from the central directory of a zip or the listing of a folder."""

    part: Part
    pictures: HashedSet = field(default_factory=HashedSet)
    prefix: str = ""
    """Folder within a zip."""
    closed: Mapping[str, str] = field(default_factory=dict)
    """Reasons why members cannot be read, by name."""
    loss: str = ""
    """Reason why nothing of the part can be read, or empty."""
    others: tuple[str, ...] = ()
    """Names of files that are neither pictures nor the part's JSON."""

    def reason(self, name: str) -> str | None:
        """Return why a picture cannot be read, or None."""
        if self.loss:
            return self.loss
        if name not in self.pictures:
            return f"missing picture: {self.part.uri} does not contain {name}"
        return self.closed.get(name)


def read_contents(part: Part) -> Contents:
    """Return the contents of a part; a part that is damaged or missing has a `loss`."""
    return read_contents_and_names(part)[0]


def read_contents_and_names(part: Part) -> tuple[Contents, list[str]]:
    """Return the contents of a part and the names of its pictures."""
    try:
        if not part.zipped:
            inside = listing.names(part.uri)
            names = list(filter(is_picture, inside))
            return Contents(part, HashedSet(names), others=_others(part, inside)), names
        with closing(Zip(part.uri)) as opened:
            return _look_inside(part, opened.archive.infolist())
    except (OSError, ValueError) as error:
        return Contents(part, loss=f"unreadable part: {part.uri}: {error}"), []


def _look_inside(part: Part, infos: list[zipfile.ZipInfo]) -> tuple[Contents, list[str]]:
    named = {posixpath.basename(info.filename): info for info in infos if not info.is_dir()}
    marks = [info.filename for name, info in named.items() if name == part.json]
    prefix = marks[0].removesuffix(part.json) if marks else ""
    closed = {name: reason for name, info in named.items() if (reason := _closed(part, info))}
    names = list(filter(is_picture, named))
    return Contents(part, HashedSet(names), prefix, closed, others=_others(part, named)), names


def _others(part: Part, names: Iterable[str]) -> tuple[str, ...]:
    return tuple(name for name in names if name != part.json and not is_picture(name))


def _closed(part: Part, info: zipfile.ZipInfo) -> str | None:
    if info.flag_bits & _ENCRYPTED:
        return f"locked picture: {info.filename} in {part.uri} needs a password; zip it without"
    if info.compress_type not in _METHODS:
        return (
            f"unknown compression: {info.filename} in {part.uri} has method {info.compress_type}; "
            f"allowed: {', '.join(_METHODS.values())}"
        )
    return None


def read_json(part: Part, contents: Contents) -> dict[str, Any]:
    """Return prompt and settings (p, se, c, st, sa) by picture name.

    Raises:
        OSError: the part has no such file, or it cannot be read.
        ValueError: it is not a JSON object.
    """
    if part.zipped:
        with closing(Zip(part.uri)) as opened:
            text = opened.read(contents.prefix + part.json)
    else:
        text = files.read_bytes(files.inside(part.uri, part.json))
    prompts = json.loads(text)
    if not isinstance(prompts, dict):
        raise ValueError(f"{part.json} is not a JSON object")
    return prompts
