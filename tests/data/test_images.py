import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from img2prompt.data.images import (
    FORMATS,
    LONGEST,
    BadPicture,
    LargePicture,
    decode,
    encode,
    probe,
    resize,
    size_reason,
)


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Smooth shapes with noise, so that both blur and sharpness errors show."""
    rng = np.random.default_rng(height * 1000 + width)
    waves = np.add.outer(np.sin(np.arange(height) / 5), np.cos(np.arange(width) / 7))
    pixels = waves[..., None] * 60 + rng.normal(128, 40, (height, width, channels))
    return pixels.clip(0, 255).astype(np.uint8)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    sink = BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, bits: int, colour: int, rows: bytes, before: bytes = b"") -> bytes:
    """A PNG written from its specification, for kinds that Pillow does not write."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + before + data + chunk(b"IEND", b"")


def clip_resize(image: np.ndarray, size: int, fit: str) -> np.ndarray:
    square = {"height": size, "width": size}
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": size} if fit == "crop" else square,
        crop_size=square,
        do_center_crop=fit == "crop",
        do_rescale=False,
        do_normalize=False,
    )
    out = processor(image, return_tensors="np", input_data_format="channels_last")
    return out.pixel_values[0].transpose(1, 2, 0)


def check_same(found: np.ndarray, expected: np.ndarray, fit: str = "crop") -> None:
    """Equal but for one value in fifty that is off by a level or two.

    `whole` shrinks the two sides differently, and Pillow may do the other side first, with its own
    rounding in between.
    """
    difference = np.abs(found.astype(int) - expected)
    assert found.shape == expected.shape
    assert difference.max() <= (2 if fit == "crop" else 12)
    assert (difference > 0).mean() < (0.02 if fit == "crop" else 0.3)


@pytest.mark.parametrize("fit", ["crop", "whole"])
@pytest.mark.parametrize(
    ("height", "width"),
    [
        (512, 512),
        (511, 767),
        (768, 512),
        (337, 1009),
        (64, 64),
        (5, 9),
        (1, 1),
        (224, 225),
        (9, 3),
        (31, 900),
        (700, 23),
    ],
)
def test_resize_is_clips_own(height: int, width: int, fit: str) -> None:
    image = noise(height, width)
    for size in (64, 225, 336):
        check_same(resize(image, size, fit), clip_resize(image, size, fit), fit)


def test_a_thread_of_pixels_is_cut_before_it_needs_gigabytes() -> None:
    thread = noise(2, 200_000)
    cut = thread[:, 100_000 - LONGEST : 100_000 + LONGEST]
    check_same(resize(thread, 56, "crop"), clip_resize(cut, 56, "crop"))
    upright = thread.transpose(1, 0, 2)
    cut = upright[100_000 - LONGEST : 100_000 + LONGEST]
    check_same(resize(upright, 56, "crop"), clip_resize(cut, 56, "crop"))


def test_real_pictures_resize_as_clips_own(shared_data: Path) -> None:
    for path in sorted((shared_data / "pictures").iterdir())[::60]:
        image = decode(path.read_bytes())
        expected = clip_resize(np.array(Image.open(path).convert("RGB")), 224, "crop")
        check_same(resize(image, 224, "crop"), expected)


def test_probe_reads_what_the_list_says(shared_data: Path) -> None:
    for path in sorted((shared_data / "pictures").iterdir())[::25]:
        data = path.read_bytes()
        height, width, _ = decode(data).shape
        assert probe(data) == (width, height)
        with path.open("rb") as file:
            assert probe(file) == (width, height)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "QOI", "PPM"])
def test_exact_formats_keep_every_pixel(kind: str) -> None:
    pixels = noise(21, 34)
    assert kind in FORMATS
    assert np.array_equal(decode(saved(Image.fromarray(pixels), kind)), pixels)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_fast_decoders_give_pillows_pixels(
    kind: str, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in sorted((shared_data / "pictures").iterdir())[::100]:
        picture = Image.open(path).convert("RGB")
        for options in ({}, {"quality": 95, "subsampling": 0}, {"lossless": True}):
            data = saved(picture, kind, **options)
            expected = np.array(Image.open(BytesIO(data)).convert("RGB"))
            with monkeypatch.context() as patch:
                patch.setattr("img2prompt.data.images.on_white", lambda _: pytest.fail("Pillow"))
                assert np.array_equal(decode(data), expected)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF"])
def test_lossy_formats_are_close(kind: str) -> None:
    smooth = np.array(Image.fromarray(noise(6, 8)).resize((64, 48), Image.Resampling.BICUBIC))
    back = decode(saved(Image.fromarray(smooth), kind, quality=95))
    assert np.abs(back.astype(int) - smooth).mean() < 3


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_alpha_is_composited_on_white(kind: str) -> None:
    pixels = noise(16, 24, 4)
    pixels[:, :4, 3], pixels[:, 4:8, 3] = 0, 255
    result = decode(saved(Image.fromarray(pixels), kind, lossless=True, exact=True))
    alpha = pixels[..., 3:] / 255
    expected = pixels[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(result - expected).max() <= 1
    assert (result[:, :4] == 255).all()
    assert np.array_equal(result[:, 4:8], pixels[:, 4:8, :3])


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_transparent_palette_entries_become_white(kind: str) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    result = decode(saved(image, kind, transparency=1))
    assert result.tolist() == [[[200, 0, 0], [255, 255, 255], [0, 0, 200]]]


def test_transparent_shades_of_a_palette_are_blended() -> None:
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([100, 0, 0, 0, 100, 0])
    result = decode(saved(image, "PNG", transparency=bytes([255, 51])))
    assert result.tolist() == [[[100, 0, 0], [204, 224, 204]]]


def test_16_bit_values_are_scaled_not_clipped() -> None:
    values = np.array([[0, 1000, 32896, 65535]], ">u2")
    row = b"\0" + values.tobytes()
    expected = [[[v] * 3 for v in (0, 3, 128, 255)]]
    assert decode(png(4, 1, 16, 0, row)).tolist() == expected
    rgb_row = b"\0" + np.repeat(values[..., None], 3, 2).tobytes()
    assert decode(png(4, 1, 16, 2, rgb_row)).tolist() == expected
    grey = Image.fromarray(values.astype(np.uint16))
    assert decode(saved(grey, "TIFF")).tolist() == expected
    assert decode(b"P5 4 1 65535\n" + values.tobytes()).tolist() == expected


def test_a_transparent_16_bit_grey_becomes_white() -> None:
    row = b"\0" + np.array([[0, 1000, 1001]], ">u2").tobytes()
    clear = chunk(b"tRNS", struct.pack(">H", 1000))
    assert decode(png(3, 1, 16, 0, row, clear))[0, :, 0].tolist() == [0, 255, 3]


def test_grey_one_bit_and_cmyk_become_rgb() -> None:
    grey = noise(9, 7, 1)[..., 0]
    assert np.array_equal(decode(saved(Image.fromarray(grey), "PNG")), grey[..., None].repeat(3, 2))
    bits = Image.fromarray(grey > 128)
    assert set(np.unique(decode(saved(bits, "PNG")))) == {0, 255}
    cmyk = saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100)
    assert np.abs(decode(cmyk).astype(int) - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied_once(kind: str, orientation: int) -> None:
    stored = np.zeros((40, 64, 3), np.uint8)
    stored[:20, :32], stored[:20, 32:], stored[20:, :32] = 60, 120, 180
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(Image.fromarray(stored), kind, exif=exif, quality=95)
    turned = {  # EXIF 2.3, table of Orientation
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, -1),
        7: np.rot90(stored, 2).transpose(1, 0, 2),
        8: np.rot90(stored),
    }[orientation]
    result = decode(data)
    assert result.shape == turned.shape
    assert np.abs(result.astype(int) - turned).max() < 20
    assert probe(data) == (turned.shape[1], turned.shape[0])


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b""])
def test_a_broken_exif_block_does_not_cost_the_picture(exif: bytes) -> None:
    data = saved(Image.new("RGB", (5, 3), "red"), "PNG", exif=exif)
    assert decode(data).shape == (3, 5, 3)
    assert probe(data) == (5, 3)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation_counts(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    assert (decode(data) == [255, 0, 0]).all()


def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = png(20_000, 10_000, 8, 2, b"\0" * 100)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    with pytest.raises(BadPicture, match=r"20000 x 10000 = 200 megapixels; allowed: at most 100"):
        decode(bomb)
    assert probe(bomb) == (20_000, 10_000)


def test_the_limit_is_the_configs_not_pillows() -> None:
    with pytest.raises(BadPicture, match="damaged PNG"):  # so it went past the size
        decode(png(20_000, 10_000, 8, 0, b"\0" * 100), 201, whole_megapixels=201)
    large = np.zeros((10, 10, 3), np.uint8)
    with pytest.raises(BadPicture, match="allowed: at most 5e-05"):
        decode(encode(large, "png"), max_megapixels=0.00005)


def test_size_reason_names_value_and_range() -> None:
    assert size_reason(512, 512, min_side=512) is None
    assert "12 x 40 pixels; allowed: 16 or more" in (size_reason(12, 40, min_side=16) or "")
    with pytest.raises(BadPicture, match="allowed: 16 or more on the shorter side"):
        decode(encode(noise(40, 12), "png"), min_side=16)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF"])
def test_a_truncated_picture_is_refused_at_any_length(kind: str) -> None:
    data = saved(Image.fromarray(noise(60, 80)), kind)
    for share in (0.05, 0.3, 0.6, 0.9):
        with pytest.raises(BadPicture, match=r"damaged|not a picture"):
            decode(data[: int(len(data) * share)])


@pytest.mark.parametrize(
    "data",
    [b"", b"hello, I am a text file", b"\x89PNG\r\n\x1a\n", png(0, 0, 8, 2, b""), b"\xff\xd8\xff"],
)
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(BadPicture, match=r"it starts with .*allowed: PNG, JPEG"):
        decode(data)
    with pytest.raises(BadPicture, match="not a picture"):
        probe(data)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_flipped_bytes_never_raise_anything_else() -> None:
    rng = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF"):
        clean = np.frombuffer(saved(Image.fromarray(noise(24, 24)), kind), np.uint8)
        outcomes = set()
        for _ in range(60):
            data = clean.copy()
            data[rng.integers(0, len(data), 8)] = rng.integers(0, 256, 8)
            try:
                outcomes.add(decode(data.tobytes()).dtype == np.uint8)
            except BadPicture as error:
                outcomes.add(bool(str(error)))
        assert outcomes == {True}


def test_float_and_out_of_range_pixels_are_refused() -> None:
    floats = saved(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF")
    with pytest.raises(BadPicture, match="32-bit floats"):
        decode(floats)
    large = saved(Image.fromarray(np.array([[0, 70_000]], np.int32)), "TIFF")
    with pytest.raises(BadPicture, match="from 0 to 70000; allowed: 0 to 65535"):
        decode(large)


def test_encode_png_is_exact_and_jpeg_is_close() -> None:
    pixels = noise(48, 48)
    assert np.array_equal(decode(encode(pixels, "png")), pixels)
    jpeg = encode(pixels, "jpeg")
    assert np.abs(decode(jpeg).astype(int) - pixels).mean() < 5
    assert len(jpeg) < len(encode(pixels, "png"))


def test_jpeg_keeps_full_chroma() -> None:
    stripes = np.zeros((32, 32, 3), np.uint8)
    stripes[:, ::2, 0], stripes[:, 1::2, 2] = 255, 255
    assert np.abs(decode(encode(stripes, "jpeg")).astype(int) - stripes).max() < 40


@pytest.mark.parametrize(("limit", "factor"), [(0.04, 1), (0.02, 2), (0.0025, 4), (0.0007, 8)])
def test_a_large_jpeg_is_decoded_at_a_reduced_scale(limit: float, factor: int) -> None:
    smooth = np.array(Image.fromarray(noise(6, 8)).resize((240, 160), Image.Resampling.BICUBIC))
    for mode in ("RGB", "L"):
        image = Image.fromarray(smooth).convert(mode)
        reduced = decode(saved(image, "JPEG", quality=95), whole_megapixels=limit)
        assert reduced.shape == (160 // factor, 240 // factor, 3)
        expected = np.array(image.convert("RGB").reduce(factor))
        assert np.abs(reduced.astype(int) - expected).mean() < 4


def test_a_reduced_picture_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = np.zeros((80, 120, 3), np.uint8)
    stored[:40] = 200
    reduced = decode(saved(Image.fromarray(stored), "JPEG", exif=exif), whole_megapixels=0.003)
    assert reduced.shape == (60, 40, 3)
    assert reduced[:, 30].min() > 150
    assert reduced[:, 10].max() < 50


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("JPEG", {"progressive": True})])
def test_a_large_picture_that_needs_its_memory_is_refused(kind: str, options: dict) -> None:
    data = saved(Image.fromarray(noise(100, 200)), kind, **options)
    assert decode(data, whole_megapixels=0.02).shape == (100, 200, 3)
    with pytest.raises(LargePicture, match=r"200 x 100 = 0.02 megapixels; allowed: at most 0.019"):
        decode(data, whole_megapixels=0.019)


def test_a_jpeg_too_large_for_the_smallest_scale_is_refused() -> None:
    with pytest.raises(LargePicture, match=r"at most 0\.0001"):
        decode(saved(Image.fromarray(noise(100, 200)), "JPEG"), whole_megapixels=0.0001)


def test_the_first_frame_of_a_gif_of_several_sizes() -> None:
    frames = [Image.new("P", (8, 6), 1), Image.new("P", (8, 6), 2)]
    for frame in frames:
        frame.putpalette([0, 0, 0, 250, 0, 0, 0, 0, 250])
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decode(data) == [250, 0, 0]).all()
    assert probe(data) == (8, 6)
