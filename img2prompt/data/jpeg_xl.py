"""JPEG XL, which Pillow does not read: size from the header, metadata boxes, pixels.

A file is a bare codestream or an ISO container of boxes. The layout is that of ISO/IEC 18181-1
(SizeHeader, ImageMetadata) and 18181-2 (boxes); imagecodecs decodes the pixels with libjxl.
"""

import struct
from collections.abc import Iterator
from typing import BinaryIO

import imagecodecs
import numpy as np
from PIL import Image

from img2prompt.data.stored_pixels import UnreadPixels

NAME = "JPEG XL"
LARGEST_BOX = 8 << 20
"""Bytes of a metadata box that are read, and that a packed one may unpack to."""

_BARE = b"\xff\x0a"
_CONTAINER = b"\0\0\0\x0cJXL \r\n\x87\n"
_CODESTREAM_START = 64  # bytes; size and orientation are in the first 14
_SIZE_BITS = (9, 13, 18, 30)
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))


def is_jpeg_xl(start: bytes) -> bool:
    """Return whether a file that begins with these 12 bytes is a JPEG XL."""
    return start.startswith((_BARE, _CONTAINER))


def read_size(file: BinaryIO) -> tuple[int, int]:
    """Return width and height of the upright picture; no pixel is decoded.

    Raises:
        ValueError: the file ends before its size.
    """
    bits = _Bits(_codestream_start(file))
    small = bits.take(1)
    height = _side(bits, small)
    ratio = bits.take(3)
    if ratio:
        times, parts = _RATIOS[ratio - 1]
        width = height * times // parts
    else:
        width = _side(bits, small)
    all_default = bits.take(1)
    orientation = bits.take(3) + 1 if not all_default and bits.take(1) else 1
    return (height, width) if orientation >= 5 else (width, height)


def read_metadata(file: BinaryIO) -> tuple[bytes, bytes]:
    """Return the EXIF block (a TIFF file) and the XMP text; empty where the picture has none."""
    exif = xmp = b""
    for kind, size in _boxes(file):
        if kind not in (b"Exif", b"xml ", b"brob") or size > LARGEST_BOX:
            continue
        data = file.read(size)
        if kind == b"brob":
            kind = data[:4]
            data = imagecodecs.brotli_decode(data[4:], out=LARGEST_BOX)
        if kind == b"Exif" and not exif:
            exif = data[4 + int.from_bytes(data[:4], "big") :]
        elif kind == b"xml " and not xmp:
            xmp = data
    return bytes(exif), bytes(xmp)


def decode(data: bytes) -> Image.Image:
    """Return the upright first frame as a Pillow picture of 8 bits a channel.

    16-bit values keep their upper 8 bits.

    Raises:
        UnreadPixels: the pixels are of a kind that is not read.
        imagecodecs.JpegxlError: the file is damaged.
    """
    pixels = np.asarray(imagecodecs.jpegxl_decode(data, index=0))
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise UnreadPixels(f"pixels are {pixels.dtype} of unknown range; allowed: 8 or 16 bits")
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    return Image.fromarray(pixels)


class _Bits:
    """Bits of a codestream, the lowest bit of each byte first."""

    def __init__(self, data: bytes) -> None:
        self._bits, self._left = int.from_bytes(data, "little"), 8 * len(data)

    def take(self, count: int) -> int:
        if count > self._left:
            raise ValueError("the file ends before its size")
        value = self._bits & ((1 << count) - 1)
        self._bits >>= count
        self._left -= count
        return value


def _side(bits: _Bits, small: int) -> int:
    if small:
        return (bits.take(5) + 1) * 8
    return bits.take(_SIZE_BITS[bits.take(2)]) + 1


def _codestream_start(file: BinaryIO) -> bytes:
    """Return the first bytes of the codestream after its signature."""
    file.seek(0)
    start = file.read(_CODESTREAM_START)
    if not start.startswith(_BARE):
        start = b""
        for kind, size in _boxes(file):
            if kind in (b"jxlc", b"jxlp"):
                number = 4 if kind == b"jxlp" else 0  # each part begins with its number
                start = file.read(min(size, _CODESTREAM_START + number))[number:]
                break
    return start.removeprefix(_BARE)


def _boxes(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Yield kind and content size of each box; the file stands at the content."""
    position, end = 0, file.seek(0, 2)
    file.seek(0)
    if file.read(2) == _BARE:
        return
    while position + 8 <= end:
        file.seek(position)
        size, kind = struct.unpack(">I4s", file.read(8))
        header = 8
        if size == 1:
            size, header = int.from_bytes(file.read(8), "big"), 16
        size = size or end - position  # 0: up to the end of the file
        if size < header:
            return
        yield kind, min(size, end - position) - header
        position += size
