from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from img2prompt.data.jpeg_scans import is_streamed_jpeg


def jpeg(mode: str = "RGB", **options: object) -> bytes:
    sink = BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (32, 48, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(sink, "JPEG", **options)
    return sink.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_progressive_pictures_keep_their_coefficients(mode: str) -> None:
    assert is_streamed_jpeg(jpeg(mode))
    assert not is_streamed_jpeg(jpeg(mode, progressive=True))


def test_comments_exif_and_restarts_are_passed_over() -> None:
    assert is_streamed_jpeg(
        jpeg(comment=b"\xff\xc2" * 20, exif=b"Exif\0\0MM", restart_marker_rows=1)
    )


def test_several_scans_are_not_streamed() -> None:
    data = bytearray(jpeg())
    scan = data.index(b"\xff\xda")
    data[scan + 4] = 1  # a first scan of one component of three
    assert not is_streamed_jpeg(bytes(data))


@pytest.mark.parametrize("cut", [0, 1, 2, 3, 20, 160])
def test_other_and_truncated_files_are_not_streamed(cut: int) -> None:
    assert not is_streamed_jpeg(jpeg()[:cut])
    assert not is_streamed_jpeg(b"\x89PNG" + bytes(100))
