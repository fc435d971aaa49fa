"""Hostile and broken files give a short NoPrompt quickly."""

import contextlib
import struct
import tracemalloc
import zlib
from io import BytesIO

import pytest
from PIL import Image

from img2prompt.data.sources.metadata.base import Metadata, NoPrompt
from img2prompt.data.sources.metadata.programs import read_metadata
from img2prompt.data.sources.metadata.texts import LARGEST, read_texts

START = b"\x89PNG\r\n\x1a\n"
HEADER = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
PIXELS = zlib.compress(bytes(8 * 25))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*before: bytes, after: bytes = b"") -> BytesIO:
    parts = START, chunk(b"IHDR", HEADER), *before, chunk(b"IDAT", PIXELS), after
    return BytesIO(b"".join(parts) + chunk(b"IEND", b""))


def test_every_kind_of_png_text() -> None:
    texts, notes = read_texts(
        png(
            chunk(b"tEXt", b"latin\0caf\xe9"),
            chunk(b"tEXt", "utf\0café".encode()),
            chunk(b"zTXt", b"packed\0\0" + zlib.compress(b"x" * 9)),
            chunk(b"iTXt", "plain\0\0\0en\0titre é\0彩虹".encode()),
            chunk(b"iTXt", b"both\0\1\0\0\0" + zlib.compress("é".encode())),
            chunk(b"tEXt", b"latin\0the first of a name is kept"),
        )
    )
    expected = {"latin": "café", "utf": "café", "packed": "x" * 9, "plain": "彩虹", "both": "é"}
    assert (texts, notes) == (expected, [])


def test_text_after_the_pixels_is_read_where_there_is_none_before() -> None:
    after = chunk(b"tEXt", b"prompt\0after")
    assert read_metadata(png(after=after)).prompt == "after"
    texts = read_metadata(png(chunk(b"tEXt", b"prompt\0before"), after=after))
    assert texts.prompt == "before"


@pytest.mark.parametrize(
    ("bomb", "note"),
    [
        (chunk(b"tEXt", b"prompt\0" + b"a" * (50 << 20)), "a text of 52428807 bytes; allowed"),
        (chunk(b"zTXt", b"prompt\0\0" + zlib.compress(bytes(50 << 20), 9)), "unpacks to more"),
        (
            chunk(b"iTXt", b"prompt\0\1\0\0\0" + zlib.compress(bytes(50 << 20), 9)),
            "unpacks to more",
        ),
        (chunk(b"zTXt", b"prompt\0\0no zlib"), "a broken zTXt chunk"),
        (chunk(b"iTXt", b"prompt\0\1"), "a broken iTXt chunk"),
        (chunk(b"eXIf", b"MM\0\x2a\xff\xff\xff\xff"), "no text"),
        (struct.pack(">I", 50 << 20) + b"tEXtprompt\0", "a chunk cut short (52428800 bytes"),
        (struct.pack(">I", 2**32 - 1) + b"IDAT", "a chunk cut short"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_bombs_and_broken_chunks_in_png(bomb: bytes, note: str) -> None:
    stream = png(bomb)
    del bomb
    tracemalloc.start()
    with pytest.raises(NoPrompt) as error:
        read_metadata(stream)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert note in str(error.value)
    assert len(str(error.value)) < 400
    assert peak < 3 * LARGEST


def test_many_bombs_stay_bounded() -> None:
    packed = zlib.compress(bytes(LARGEST))
    bombs = [chunk(b"zTXt", b"p%d\0\0" % number + packed) for number in range(100)]
    texts, _ = read_texts(png(*bombs))
    assert sum(map(len, texts.values())) <= 3 * LARGEST
    texts, notes = read_texts(png(*[chunk(b"zTXt", b"x\0\0bad")] * 1000))
    assert len(notes) < 100


def test_a_broken_chunk_costs_only_itself() -> None:
    stream = png(chunk(b"zTXt", b"workflow\0\0bad"), chunk(b"tEXt", b"prompt\0a cat"))
    assert read_metadata(stream) == Metadata("a cat")


def test_files_that_are_not_pictures() -> None:
    for data in (
        b"",
        b"\x89PNG",
        START,
        b"GIF89a",
        b"RIFF\xff\xff\xff\xffWEBP",
        b"\xff\xd8\xff\xe1",
    ):
        with pytest.raises(NoPrompt, match="no prompt: "):
            read_metadata(BytesIO(data))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_every_truncation_of_a_picture_is_an_answer(form: str) -> None:
    exif = Image.Exif()
    exif[0x010E] = "a cat"
    sink = BytesIO()
    Image.new("RGB", (8, 8)).save(sink, form, exif=exif.tobytes())
    data = sink.getvalue()
    answers = set()
    for end in range(len(data) + 1):
        try:
            answers.add(read_metadata(BytesIO(data[:end])).prompt)
        except NoPrompt:
            answers.add("")
    assert answers <= {"", *("a cat"[:length] for length in range(6))}
    assert "a cat" in answers


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_every_broken_byte_of_exif_is_an_answer() -> None:
    exif = Image.Exif()
    exif[0x010E] = "a cat"
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + "a dog".encode("utf-16-be")
    sink = BytesIO()
    Image.new("RGB", (8, 8)).save(sink, "JPEG", exif=exif.tobytes())
    data = bytearray(sink.getvalue())
    start = data.index(b"Exif")
    for position in range(start, start + 120):
        broken = data.copy()
        broken[position] ^= 0xFF
        with contextlib.suppress(NoPrompt):
            assert read_metadata(BytesIO(broken)).prompt


def test_an_error_of_the_file_system_is_passed_on() -> None:
    class Gone(BytesIO):
        def read(self, *_: object) -> bytes:
            raise OSError(5, "the network is gone")

    with pytest.raises(OSError, match="the network is gone"):
        read_metadata(Gone(png().getvalue()))


def test_odd_utf_16() -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + "a cat".encode("utf-16-le") + b"x"
    sink = BytesIO()
    Image.new("RGB", (8, 8)).save(sink, "JPEG", exif=exif.tobytes())
    assert read_metadata(sink).prompt.startswith("a cat")


SCRIPTS = [
    "一只红狐狸",
    "кошка на снегу",
    "แมวในหิมะ",
    "ድመት በበረዶ",
    "赤い狐、雪の中",
    "a red fox",
    "fox",
    "🦊 一",
]
CODECS = {"<": "utf-16-le", ">": "utf-16-be"}


def comment_of(text: str, file_order: str, codec: str) -> str:
    """Write an EXIF comment in UTF-16 without a mark, and read it."""
    exif = Image.Exif()
    exif.endian = file_order
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + text.encode(codec)
    sink = BytesIO()
    data = exif.tobytes()
    assert data[6:8] == {"<": b"II", ">": b"MM"}[file_order]
    Image.new("RGB", (8, 8)).save(sink, "JPEG", exif=data)
    return read_texts(sink)[0]["UserComment"]


@pytest.mark.parametrize("text", SCRIPTS)
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_comment_in_the_byte_order_of_its_file(text: str, order: str) -> None:
    assert comment_of(text, order, CODECS[order]) == text


@pytest.mark.parametrize("text", ["a red fox", "一只红狐狸, Steps: 20", "кошка, best quality"])
def test_a_comment_in_the_other_byte_order(text: str) -> None:
    assert comment_of(text, "<", CODECS[">"]) == text
    assert comment_of(text, ">", CODECS["<"]) == text


def test_chinese_that_is_half_ascii_when_swapped() -> None:
    text = "一" * 3 + "个丁七万丈三上下不与丑专且世丘业东丝丢两严丧个" + "狐狸" * 20
    for order, codec in CODECS.items():
        assert comment_of(text, order, codec) == text
