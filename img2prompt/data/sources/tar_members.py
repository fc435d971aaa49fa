"""Members of a tar, from header to header, gathered into samples in any order.

Members that share a key are one sample. A key ends at the first dot of the file's name, which is
the rule of github.com/webdataset/webdataset; where nothing usable results, as in `fox_v1.5.jpg`, it
ends at the last one. A sample is complete when it has a picture and a text or JSON. While each
key's adjacent members are complete the tar counts as sorted, and samples are yielded at once; from
the first incomplete one on the members are kept (200 bytes each) until the end of the tar.
"""

import io
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from img2prompt.data.sources import files
from img2prompt.data.sources.containers import DAMAGES, HEADER_BYTES, Range
from img2prompt.data.sources.folder import PICTURE_ENDS, TEXT_END
from img2prompt.data.sources.left_out import LeftOut
from img2prompt.data.sources.listing import is_system_file
from img2prompt.data.sources.prefetch import probe

JSON_END = ".json"
_REMOTE_BYTES = 8 << 20
"""Bytes of one read from an object store, where a request costs as much as a megabyte."""


class Member(NamedTuple):
    """A file in a tar."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Sample:
    """Members that share a key."""

    key: str
    picture: Member | None
    text: Member | None
    json: Member | None
    ends: tuple[str, ...]
    """Ends of all members with this key."""


def samples(members: Iterable[Member], left_out: LeftOut) -> Iterator[Sample]:
    """Yield the samples in the order of their first members.

    Members that belong to no sample are counted in `left_out`.
    """
    gathered: dict[str, list[Member]] = {}
    yielded: set[str] = set()
    own = (member for member in members if not _is_system(member, left_out))
    for key, adjacent in groupby(own, key=lambda member: _key(member.name)):
        group = list(adjacent)
        whole = _split(key, group)
        if gathered or not all(_is_complete(*pair) for pair in whole):
            gathered.setdefault(key, []).extend(group)
            continue
        yielded.add(key)
        for name, part in whole:
            yield _sample(name, part, left_out)
    for key, group in gathered.items():
        for name, part in _split(key, group):
            if _is_complete(name, part):
                yield _sample(name, part, left_out)
            elif key in yielded:
                for member in part:
                    left_out.add(member.name)
            else:  # its reason names the members
                yield _sample(name, part, LeftOut("", ""))


def _is_system(member: Member, left_out: LeftOut) -> bool:
    if is_system_file(member.name):
        left_out.add(member.name)
        return True
    return False


def _split(key: str, members: list[Member]) -> list[tuple[str, list[Member]]]:
    """Return the members by sample: all in one, or by the last dot where that is incomplete."""
    if _is_complete(key, members):
        return [(key, members)]
    by_last_dot: dict[str, list[Member]] = {}
    for member in members:
        by_last_dot.setdefault(member.name.rpartition(".")[0], []).append(member)
    complete = [(name, part) for name, part in by_last_dot.items() if _is_complete(name, part)]
    used = {member for _, part in complete for member in part}
    rest = [member for member in members if member not in used]
    return [*complete, (key, rest)] if rest else complete


def _is_complete(key: str, members: list[Member]) -> bool:
    sample = _sample(key, members, LeftOut("", ""))
    return sample.picture is not None and (sample.text is not None or sample.json is not None)


def _sample(key: str, members: list[Member], left_out: LeftOut) -> Sample:
    """Return the sample of members that share a key; further ones go to `left_out`."""
    picture = text = json = None
    ends = [member.name[len(key) :].lower() for member in members]
    for member, end in zip(members, ends, strict=True):
        if end in PICTURE_ENDS and picture is None:
            picture = member
        elif end == TEXT_END and text is None:
            text = member
        elif end == JSON_END and json is None:
            json = member
        else:
            left_out.add(member.name)
    return Sample(key, picture, text, json, tuple(ends))


def _key(name: str) -> str:
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


class Scan:
    """The complete files of a tar, and what was lost."""

    def __init__(self, file: files.SteadyFile) -> None:
        size = HEADER_BYTES if file.local else _REMOTE_BYTES
        self.file, self.stream = file, io.BufferedReader(file, size)
        self.loss = ""

    def members(self, left_out: LeftOut) -> Iterator[Member]:
        """Yield the files in order. Then `loss` is set when the tar does not end as it should.

        Links are counted in `left_out`: a picture must be stored under its own name.
        """
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
                        yield Member(info.name, info.offset_data, info.size)
                    elif not info.isdir():
                        left_out.add(info.name, "links")
        except DAMAGES as error:
            self.loss = f"{error} after byte {end}"
            return
        # tarfile also ends at a bad header and where the file is cut off between two members.
        last = self.file.read_at(tarfile.BLOCKSIZE, end)
        if len(last) < tarfile.BLOCKSIZE or any(last):
            self.loss = f"it has {self.file.size} bytes and no end mark at byte {end}"

    def read(self, member: Member) -> bytes:
        self.stream.seek(member.offset)
        return self.stream.read(member.size)

    def probe(self, member: Member) -> tuple[int, int]:
        return probe(io.BufferedReader(Range(self.stream, member.offset, member.size)))

    def close(self) -> None:
        self.stream.close()
