"""The parts of DiffusionDB: `part-000001.zip` or `part-000001/`, with `part-000001.json` inside."""

import json
import posixpath
import re
import zipfile
from collections.abc import Mapping
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
    """Where a part lies."""

    number: int
    uri: str
    folder: str = ""
    """Name of the folder it lies in, or empty."""

    @property
    def zipped(self) -> bool:
        return self.uri.endswith(".zip")

    @property
    def json(self) -> str:
        return f"{part_name(self.number)}.json"

    def place(self, prefix: str, name: str) -> tuple[str, str]:
        """`uri` and `member` of a picture."""
        if self.zipped:
            return self.uri, prefix + name
        return files.inside(self.uri, name), ""


def part_name(number: int) -> str:
    return f"part-{number:06d}"


def find_parts(path: str) -> list[Part]:
    """Parts in a folder and in the folders of that; a zip goes before a folder of one number."""
    own = PART.fullmatch(path.rpartition("/")[2])
    if own:
        return [Part(int(own[1]), path)]
    found: dict[tuple[str, int], Part] = {}
    for name in listing.names(path):
        if not name.endswith("/") or PART.fullmatch(name[:-1]):
            _add(found, path, "", name)
            continue
        for inner in listing.names(files.inside(path, name[:-1])):
            _add(found, files.inside(path, name[:-1]), name, inner)
    return [found[key] for key in sorted(found)]


def _add(found: dict[tuple[str, int], Part], where: str, folder: str, name: str) -> None:
    matched = PART.fullmatch(name.rstrip("/"))
    if matched:
        number = int(matched[1])
        if matched[2] or (folder, number) not in found:
            found[folder, number] = Part(number, files.inside(where, name.rstrip("/")), folder)


@dataclass(frozen=True)
class Look:
    """What a part holds. A zip is known by its central directory, a folder by its listing."""

    part: Part
    pictures: HashedSet = field(default_factory=HashedSet)
    prefix: str = ""
    """Folder within a zip."""
    closed: Mapping[str, str] = field(default_factory=dict)
    """Members that cannot be read, with the reason."""
    loss: str = ""
    """Why nothing of the part can be read."""

    def reason(self, name: str) -> str | None:
        """Why a picture cannot be read."""
        if self.loss:
            return self.loss
        if name not in self.pictures:
            return f"missing picture: {self.part.uri} does not hold {name}"
        return self.closed.get(name)


def look(part: Part) -> Look:
    """Open a part and see what it holds; one that is damaged or gone has a `loss`."""
    return look_at_names(part)[0]


def look_at_names(part: Part) -> tuple[Look, list[str]]:
    """The same, with the names of the pictures."""
    try:
        if not part.zipped:
            names = list(filter(is_picture, listing.names(part.uri)))
            return Look(part, HashedSet(names)), names
        with closing(Zip(part.uri)) as opened:
            return _look_inside(part, opened.archive.infolist())
    except (OSError, ValueError) as error:
        return Look(part, loss=f"unreadable part: {part.uri}: {error}"), []


def _look_inside(part: Part, infos: list[zipfile.ZipInfo]) -> tuple[Look, list[str]]:
    named = {posixpath.basename(info.filename): info for info in infos if not info.is_dir()}
    marks = [info.filename for name, info in named.items() if name == part.json]
    prefix = marks[0].removesuffix(part.json) if marks else ""
    closed = {name: reason for name, info in named.items() if (reason := _closed(part, info))}
    names = list(filter(is_picture, named))
    return Look(part, HashedSet(names), prefix, closed), names


def _closed(part: Part, info: zipfile.ZipInfo) -> str | None:
    if info.flag_bits & _ENCRYPTED:
        return f"locked picture: {info.filename} in {part.uri} needs a password; zip it without"
    if info.compress_type not in _METHODS:
        return (
            f"unknown compression: {info.filename} in {part.uri} has method {info.compress_type}; "
            f"allowed: {', '.join(_METHODS.values())}"
        )
    return None


def read_json(part: Part, found: Look) -> dict[str, Any]:
    """Prompt and settings (p, se, c, st, sa) by picture name.

    Raises:
        OSError: the part holds no such file, or it cannot be read.
        ValueError: it is no JSON object.
    """
    if part.zipped:
        with closing(Zip(part.uri)) as opened:
            text = opened.read(found.prefix + part.json)
    else:
        text = files.read_bytes(files.inside(part.uri, part.json))
    prompts = json.loads(text)
    if not isinstance(prompts, dict):
        raise ValueError(f"{part.json} is no JSON object")
    return prompts
