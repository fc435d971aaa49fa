import io
import struct

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from img2prompt.data.images import BadPicture, decode, probe
from img2prompt.data.jpeg_xl import is_jpeg_xl, read_metadata, read_size
from img2prompt.data.sources.metadata.programs import read_metadata as read_prompt

SIGNATURE = b"\0\0\0\x0cJXL \r\n\x87\n"


def pixels_of(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


def exif_of(comment: str) -> bytes:
    exif = Image.Exif()
    exif[0x010E] = comment
    return bytes(4) + exif.tobytes().removeprefix(b"Exif\0\0")


@pytest.mark.parametrize("container", [False, True])
@pytest.mark.parametrize(
    ("height", "width"),
    [
        (40, 48),
        (3, 5),
        (8, 8),
        (256, 256),
        (300, 200),
        (600, 1),
        (480, 640),
        (512, 1024),
        (9000, 2),
    ],
)
def test_the_size_is_read_from_the_header(height: int, width: int, container: bool) -> None:
    pixels = pixels_of(height, width)
    data = imagecodecs.jpegxl_encode(pixels, lossless=True, usecontainer=container, effort=1)
    assert is_jpeg_xl(data[:12])
    assert data.startswith(SIGNATURE) == container
    assert probe(data) == (width, height)
    assert np.array_equal(decode(data), pixels)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_orientation_is_applied_once(orientation: int) -> None:
    stored = np.zeros((40, 64, 3), np.uint8)
    stored[:20, :32] = 200
    exif = Image.Exif()
    exif[0x0112] = orientation
    jpeg = io.BytesIO()
    Image.fromarray(stored).save(jpeg, "JPEG", exif=exif, quality=95)
    data = imagecodecs.jpegxl_encode_jpeg(jpeg.getvalue(), usecontainer=True)
    expected = decode(jpeg.getvalue())
    assert probe(data) == probe(jpeg.getvalue())
    assert decode(data).shape == expected.shape
    assert np.abs(decode(data).astype(int) - expected).mean() < 3


def test_alpha_grey_and_16_bit_become_rgb_on_white() -> None:
    clear = pixels_of(9, 7, 4)
    clear[..., 3] = 0
    assert (decode(imagecodecs.jpegxl_encode(clear, lossless=True)) == 255).all()
    grey = pixels_of(9, 7, 1)[..., 0]
    assert np.array_equal(
        decode(imagecodecs.jpegxl_encode(grey, lossless=True)), grey[..., None].repeat(3, 2)
    )
    deep = pixels_of(9, 7).astype(np.uint16) * 257
    assert np.array_equal(decode(imagecodecs.jpegxl_encode(deep, lossless=True)), deep >> 8)
    floats = pixels_of(9, 7).astype(np.float32) / 255
    with pytest.raises(BadPicture, match="float32 of unknown range; allowed: 8 or 16 bits"):
        decode(imagecodecs.jpegxl_encode(floats, lossless=True))


@pytest.mark.parametrize("length", [2, 3, 12, 20, 60])
def test_damaged_files_are_refused(length: int) -> None:
    data = imagecodecs.jpegxl_encode(pixels_of(40, 48), lossless=True)
    with pytest.raises(BadPicture, match=r"not a picture|damaged JPEG XL"):
        decode(data[:length])
    with pytest.raises(BadPicture, match="not a picture"):
        decode(SIGNATURE + box(b"ftyp", b"jxl ") + data[2:length])


def test_a_large_picture_is_refused_before_it_is_decoded() -> None:
    data = imagecodecs.jpegxl_encode(pixels_of(40, 50), lossless=True)
    with pytest.raises(BadPicture, match=r"50 x 40 = 0.002 megapixels; allowed: at most 0.001"):
        decode(data, whole_megapixels=0.001)


@pytest.mark.parametrize("packed", [False, True])
def test_metadata_boxes(packed: bool) -> None:
    stream = imagecodecs.jpegxl_encode(pixels_of(8, 8), lossless=True)
    parameters = "a red fox in snow\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 8x8"
    exif, xmp = exif_of(parameters), b"<x:xmpmeta/>"
    if packed:
        boxes = box(b"brob", b"Exif" + imagecodecs.brotli_encode(exif))
        boxes += box(b"brob", b"xml " + imagecodecs.brotli_encode(xmp))
    else:
        boxes = box(b"Exif", exif) + box(b"xml ", xmp)
    file = io.BytesIO(SIGNATURE + box(b"ftyp", b"jxl \0\0\0\0jxl ") + boxes + box(b"jxlc", stream))
    assert read_metadata(file) == (exif[4:], xmp)
    assert read_size(file) == (8, 8)
    assert read_prompt(file).prompt == "a red fox in snow"
    assert read_metadata(io.BytesIO(stream)) == (b"", b"")
