"""Pictures: bytes -> uint8 RGB -> the size of a tower's input.

Decoding uses simplejpeg for JPEG and imagecodecs for PNG and WebP where a picture is plain 8-bit
RGB: the same pixels as Pillow, faster (pyspng and OpenCV were a twentieth faster still on PNG and
WebP, for one more dependency each). Pillow reads everything else and all that those refuse, except
JPEG XL (`jpeg_xl.py`).

Memory is bounded by `whole_megapixels`: a larger JPEG is decoded at 1/2, 1/4 or 1/8 of its sides,
which libjpeg does without the full picture; a larger picture of another format is refused.

Resizing is torch's antialiased uint8 bicubic. Cropped pictures equal those of Pillow, which is
CLIP's own, but for one value in fifty, off by one or two levels; where the two sides shrink
differently (`whole`) a quarter of the values may be off, on noise by up to a dozen levels.
tests/benchmarks/host_side.py measures both steps together.

Shapes: H, W are the picture's own height and width in pixels; S is the tower's side.
"""

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO, Literal

import imagecodecs
import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch.nn.functional import interpolate

from img2prompt.data import jpeg_xl
from img2prompt.data.jpeg_scans import REDUCTIONS, is_streamed_jpeg
from img2prompt.data.stored_pixels import UnreadPixels, on_white, orientation_of, turn

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "QOI")
"""Formats that are read. Those that run other programs (EPS) or match any bytes (TGA) are not."""

LONGEST = 32
"""Aspect ratio above which a picture loses its ends before it is resized."""

_FAST: dict[str | None, Callable[[bytes], np.ndarray]] = {
    "JPEG": simplejpeg.decode_jpeg,
    "PNG": imagecodecs.spng_decode,
    "WEBP": imagecodecs.webp_decode,
}


WHOLE_MEGAPIXELS = 100.0
"""Default of `whole_megapixels`, in 1e6 pixels."""

LARGEST_MEGAPIXELS = 1000.0
"""A header that claims more is damaged or hostile."""


class BadPicture(Exception):
    """A picture that cannot be used; the message is the reason of the rejected row."""


class LargePicture(BadPicture):
    """A picture with more pixels than allowed."""


@dataclass(frozen=True)
class _Header:
    """What a picture's first bytes say. Width and height are those of the stored picture."""

    width: int
    height: int
    orientation: int
    """EXIF orientation that is still to be applied, 1 to 8."""
    image: Image.Image | None
    """Opened by Pillow; None for JPEG XL."""


def size_reason(
    width: int, height: int, max_megapixels: float = 100.0, min_side: int = 1
) -> str | None:
    """Return why a picture of this many pixels is refused, or None."""
    megapixels = width * height / 1e6
    if megapixels > max_megapixels:
        return (
            f"picture is {width} x {height} = {megapixels:.6g} megapixels; "
            f"allowed: at most {max_megapixels:g}"
        )
    if min(width, height) < min_side:
        return (
            f"picture is {width} x {height} pixels; allowed: {min_side} or more on the shorter side"
        )
    return None


def probe(source: bytes | BinaryIO) -> tuple[int, int]:
    """Return width and height of the upright picture, from its header; no pixel is decoded.

    `source` is a picture's bytes, or a seekable file, of which little more than the header is read
    (all of it for WebP). Raises BadPicture when the bytes are not a picture of a known format.
    """
    header = _open(BytesIO(source) if isinstance(source, bytes) else source)
    width, height = header.width, header.height
    return (height, width) if header.orientation >= 5 else (width, height)


def decode(
    data: bytes,
    max_megapixels: float = LARGEST_MEGAPIXELS,
    min_side: int = 1,
    whole_megapixels: float = WHOLE_MEGAPIXELS,
) -> np.ndarray:
    """Return pixels (H, W, 3) uint8 of the upright picture on white; of animations the first frame.

    The size that the header claims is checked before anything is decoded. 16-bit values keep their
    upper 8 bits. A JPEG of more than `whole_megapixels` is returned smaller by 2, 4 or 8.

    Raises:
        LargePicture: it has more than `max_megapixels`, or more than `whole_megapixels` and cannot
            be decoded at a reduced scale.
        BadPicture: it cannot be used, for the reason in the message.
    """
    header = _open(BytesIO(data))
    reason = size_reason(header.width, header.height, max_megapixels, min_side)
    if reason:
        raise (LargePicture if "megapixels" in reason else BadPicture)(reason)
    factor = _reduction(header, data, whole_megapixels)
    kind = header.image.format if header.image else jpeg_xl.NAME
    try:
        return turn(_decode_stored(header, data, factor), header.orientation)
    except UnreadPixels as error:
        raise BadPicture(str(error)) from error
    except Exception as error:  # decoders fail in many ways on foreign bytes
        raise BadPicture(f"damaged {kind} of {len(data)} bytes: {error}") from error


def from_pillow(image: Image.Image) -> np.ndarray:
    """Return the pixels (H, W, 3) uint8 of a Pillow picture, upright and on white as by `decode`.

    Raises:
        BadPicture: its pixels are of a kind that is not read.
    """
    try:
        return turn(np.array(on_white(image)), orientation_of(image))
    except UnreadPixels as error:
        raise BadPicture(str(error)) from error


def resize(image: np.ndarray, size: int, fit: Literal["crop", "whole"]) -> np.ndarray:
    """Resize a picture (H, W, 3) uint8 to (size, size, 3) uint8, by the rule of CLIP's processor.

    `crop`: the shorter side becomes `size`, the longer `int(size * long / short)`, then the centre
    is cut out. `whole`: both sides become `size`, nothing is cut. Bicubic with antialias.
    """
    if fit == "whole":
        return _scale(image, size, size)
    image = _cut_strip(image)
    short = min(image.shape[:2])
    height, width = (int(size * side / short) for side in image.shape[:2])
    top, left = (height - size) // 2, (width - size) // 2
    scaled = _scale(image, height, width)
    return np.ascontiguousarray(scaled[top : top + size, left : left + size])


def _scale(image: np.ndarray, height: int, width: int) -> np.ndarray:
    channels_last = torch.from_numpy(image).permute(2, 0, 1)[None]
    scaled = interpolate(channels_last, (height, width), mode="bicubic", antialias=True)
    return scaled[0].permute(1, 2, 0).contiguous().numpy()


def _cut_strip(image: np.ndarray) -> np.ndarray:
    """Cut a picture to its middle LONGEST : 1; a longer one could need gigabytes when resized."""
    height, width, _ = image.shape
    longest = LONGEST * min(height, width)
    top, left = max(0, (height - longest) // 2), max(0, (width - longest) // 2)
    return image[top : top + longest, left : left + longest]


def encode(image: np.ndarray, encoding: Literal["png", "jpeg"]) -> bytes:
    """Encode a picture (H, W, 3) uint8 as PNG, or as JPEG of quality 95 with full chroma."""
    sink = BytesIO()
    if encoding == "png":
        Image.fromarray(image).save(sink, "PNG", compress_level=1)
    else:
        Image.fromarray(image).save(sink, "JPEG", quality=95, subsampling=0)
    return sink.getvalue()


def _open(file: BinaryIO) -> _Header:
    # Pillow has a limit of its own for large pictures; size_reason applies the config's.
    Image.MAX_IMAGE_PIXELS = None
    start = file.read(12)
    file.seek(0)
    try:
        if jpeg_xl.is_jpeg_xl(start):
            return _Header(*jpeg_xl.read_size(file), 1, None)
        image = Image.open(file, formats=FORMATS)
    except Exception as error:  # headers fail in as many ways as pixels
        begin = start[:8].hex(" ") or "nothing"
        raise BadPicture(
            f"not a picture of 1 x 1 pixels or more (it starts with {begin}); "
            f"allowed: {', '.join(FORMATS)}, {jpeg_xl.NAME}"
        ) from error
    return _Header(*image.size, orientation_of(image), image)


def _reduction(header: _Header, data: bytes, whole_megapixels: float) -> int:
    """Return by how much the sides are divided while decoding: 1, 2, 4 or 8."""
    reason = size_reason(header.width, header.height, whole_megapixels)
    if not reason:
        return 1
    factors = REDUCTIONS if is_streamed_jpeg(data) else ()
    for factor in factors:
        if not size_reason(header.width // factor, header.height // factor, whole_megapixels):
            return factor
    raise LargePicture(f"{reason}, or a baseline JPEG, which is decoded at a reduced scale")


def _decode_stored(header: _Header, data: bytes, factor: int) -> np.ndarray:
    """Return the stored pixels (H, W, 3) of an opened picture, not yet rotated."""
    image = header.image
    if image is None:
        return np.array(on_white(jpeg_xl.decode(data)))
    if factor > 1:
        image.draft(None, (image.width // factor, image.height // factor))
    plain = image.mode == "RGB" and not image.has_transparency_data and factor == 1
    if plain and image.format in _FAST and getattr(image, "n_frames", 1) == 1:
        try:
            pixels = _FAST[image.format](data)
        except Exception:  # strict decoders refuse some odd files that Pillow reads
            pixels = np.empty(0)
        if pixels.dtype == np.uint8 and pixels.shape == (image.height, image.width, 3):
            return pixels
    image.load()
    return np.array(on_white(image))
