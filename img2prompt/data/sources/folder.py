"""Names and texts of the files in a folder of pictures."""

from collections.abc import Callable, Iterator

from img2prompt.data.sources import listing
from img2prompt.data.sources.left_out import LeftOut

PICTURE_ENDS = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".gif", ".jxl"),
    *(".bmp", ".tif", ".tiff", ".jp2", ".qoi"),
)
TEXT_END = ".txt"
LARGEST_TEXT = 1 << 20
"""Bytes. A prompt is a hundred times shorter than this."""


def is_picture(name: str) -> bool:
    """Return whether a file's name is that of a picture."""
    return name.lower().endswith(PICTURE_ENDS) and not listing.is_system_file(name)


def is_text(name: str) -> bool:
    """Return whether a file's name is that of a text."""
    return name.lower().endswith(TEXT_END) and not listing.is_system_file(name)


def file_names(path: str, reads: Callable[[str], bool], left_out: LeftOut) -> Iterator[str]:
    """Yield the files below a path that `reads` accepts; count the others in `left_out`.

    Names are relative to the path; the name is empty when the path is a file.
    """
    if listing.is_file(path):
        yield ""
        return
    for entry in listing.walk(path):
        is_folder = entry.name.endswith("/")
        if entry.problem and (is_folder or reads(entry.name)):
            left_out.refuse(entry.name, entry.problem)
        elif not is_folder and reads(entry.name):
            yield entry.name
        elif not is_folder:
            left_out.add(entry.name)


def decode_text(data: bytes) -> str:
    """Decode a text file, without the line end that editors add; bad bytes become surrogates."""
    return data.decode("utf-8-sig", "surrogateescape").rstrip("\r\n")
