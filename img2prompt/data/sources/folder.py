"""Names and texts of the files in a folder of pictures."""

from collections.abc import Iterator

from img2prompt.data.sources import listing

PICTURE_ENDS = (".png", ".jpg", ".jpeg", ".webp")
TEXT_END = ".txt"
LARGEST_TEXT = 1 << 20
"""Bytes. A prompt is a hundred times shorter than this."""


def is_picture(name: str) -> bool:
    """Return whether a file's name is that of a picture."""
    return name.lower().endswith(PICTURE_ENDS)


def is_text(name: str) -> bool:
    """Return whether a file's name is that of a text."""
    return name.lower().endswith(TEXT_END)


def file_names(path: str) -> Iterator[str]:
    """Yield the files below a path, relative to it; an empty name when the path is a file."""
    if listing.is_file(path):
        return iter([""])
    return (entry.name for entry in listing.walk(path) if not entry.name.endswith("/"))


def decode_text(data: bytes) -> str:
    """Decode a text file, without the line end that editors add; bad bytes become surrogates."""
    return data.decode("utf-8-sig", "surrogateescape").rstrip("\r\n")
