"""Reading pictures by their places: containers are opened once, one bad picture stops nothing."""

from collections.abc import Iterable, Iterator

from img2prompt.data.sources import files, scenes


def read_pictures(places: Iterable[tuple[str, str]]) -> Iterator[bytes | Exception]:
    """The bytes of each index row's picture, in the order of the places (`uri`, `member`).

    A picture that cannot be read gives the OSError (FileNotFoundError when it is not there) or
    ValueError that says why. Rows of one archive that follow each other cost the least.
    """
    for uri, member in places:
        try:
            yield _read(uri, member)
        except (OSError, ValueError) as error:
            yield error


def _read(uri: str, member: str) -> bytes:
    if uri.startswith(scenes.SCHEME):
        return scenes.read_scene(uri, member)
    assert not member, f"no source writes member {member!r} for {uri}"
    return files.read_bytes(uri)
