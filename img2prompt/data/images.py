"""Pictures: bytes -> uint8 RGB -> the size of a tower's input.

Decoding uses simplejpeg for JPEG and imagecodecs for PNG and WebP where a picture is plain 8-bit
RGB: the same pixels as Pillow, faster (pyspng and OpenCV were a twentieth faster still on PNG and
WebP, for one more dependency each). Pillow reads everything else and all that those refuse.

Resizing is torch's antialiased uint8 bicubic. Cropped pictures equal those of Pillow, which is
CLIP's own, but for one value in fifty, off by one or two levels; where the two sides shrink
differently (`whole`) a quarter of the values may be off, on noise by up to a dozen levels.
tests/benchmarks/host_side.py measures both steps together.

Shapes: H, W are the picture's own height and width in pixels; S is the tower's side.
"""

from collections.abc import Callable
from io import BytesIO
from typing import BinaryIO, Literal

import imagecodecs
import numpy as np
import simplejpeg
import torch
from PIL import ExifTags, Image
from torch.nn.functional import interpolate

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "QOI")
"""Formats that are read. Those that run other programs (EPS) or match any bytes (TGA) are not."""

LONGEST = 32
"""Aspect ratio above which a picture loses its ends before it is resized."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


_FAST: dict[str | None, Callable[[bytes], np.ndarray]] = {
    "JPEG": simplejpeg.decode_jpeg,
    "PNG": imagecodecs.spng_decode,
    "WEBP": imagecodecs.webp_decode,
}


class BadPicture(Exception):
    """A picture that cannot be used; the message is the reason of the rejected row."""


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
    image = _open(BytesIO(source) if isinstance(source, bytes) else source)
    width, height = image.size
    return (height, width) if _orientation(image) >= 5 else (width, height)


def decode(data: bytes, max_megapixels: float = 100.0, min_side: int = 1) -> np.ndarray:
    """Return pixels (H, W, 3) uint8 of the upright picture on white; of animations the first frame.

    The size that the header claims is checked before anything is decoded. 16-bit values keep their
    upper 8 bits. Raises BadPicture with the reason when the picture cannot be used.
    """
    image = _open(BytesIO(data))
    reason = size_reason(*image.size, max_megapixels, min_side)
    if reason:
        raise BadPicture(reason)
    try:
        return _turn(_decode_plain(image, data), _orientation(image))
    except BadPicture:
        raise
    except Exception as error:  # decoders fail in many ways on foreign bytes
        raise BadPicture(f"damaged {image.format} of {len(data)} bytes: {error}") from error


def from_pillow(image: Image.Image) -> np.ndarray:
    """Return the pixels (H, W, 3) uint8 of a Pillow picture, upright and on white as by `decode`.

    Raises:
        BadPicture: its pixels are of a kind that is not read.
    """
    return _turn(np.array(_on_white(image)), _orientation(image))


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


def _open(file: BinaryIO) -> Image.Image:
    # Pillow has a limit of its own for large pictures; size_reason applies the config's.
    Image.MAX_IMAGE_PIXELS = None
    try:
        return Image.open(file, formats=FORMATS)
    except Exception as error:  # headers fail in as many ways as pixels
        file.seek(0)
        start = file.read(8).hex(" ") or "nothing"
        raise BadPicture(
            f"not a picture of 1 x 1 pixels or more (it starts with {start}); "
            f"allowed: {', '.join(FORMATS)}"
        ) from error


def _turn(rgb: np.ndarray, orientation: int) -> np.ndarray:
    """Turn stored pixels (H, W, 3) upright."""
    if orientation not in _UPRIGHT:
        return rgb
    return np.array(Image.fromarray(rgb).transpose(_UPRIGHT[orientation]))


def _decode_plain(image: Image.Image, data: bytes) -> np.ndarray:
    """Return the stored pixels (H, W, 3) of an opened picture, not yet rotated."""
    plain = image.mode == "RGB" and not image.has_transparency_data
    if plain and image.format in _FAST and getattr(image, "n_frames", 1) == 1:
        try:
            pixels = _FAST[image.format](data)
        except Exception:  # strict decoders refuse some odd files that Pillow reads
            pixels = np.empty(0)
        if pixels.dtype == np.uint8 and pixels.shape == (image.height, image.width, 3):
            return pixels
    image.load()
    return np.array(_on_white(image))


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8, that is still to be applied."""
    if image.format == "TIFF":  # Pillow rotates these itself
        return 1
    try:
        # The PNG reader's own getexif would decode the picture.
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:  # a broken EXIF block must not cost the picture
        return 1
    return value if value in _UPRIGHT else 1


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return _from_16_bit(image)
    if image.mode == "F":
        raise BadPicture("pixels are 32-bit floats of unknown range; allowed: 8 or 16 bits")
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    grey = np.asarray(image)
    low, high = int(grey.min()), int(grey.max())
    if low < 0 or high > 65535:
        raise BadPicture(f"pixel values reach from {low} to {high}; allowed: 0 to 65535")
    grey = np.where(grey == image.info.get("transparency", -1), 65535, grey)
    return Image.fromarray((grey >> 8).astype(np.uint8)).convert("RGB")
