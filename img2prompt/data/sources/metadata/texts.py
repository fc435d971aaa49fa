"""The texts in a picture file beside its pixels, by name.

PNG chunks are read here and not by Pillow, because Pillow decodes the pixels to reach text after
them, and rejects a picture for one large text. EXIF and XMP are read by Pillow.
"""

import html
import io
import re
import struct
import zlib
from typing import BinaryIO

from PIL import ExifTags, Image

from img2prompt.data import jpeg_xl
from img2prompt.data.images import FORMATS
from img2prompt.data.sources.metadata.utf16 import decode_utf_16

LARGEST = 8 << 20
"""Bytes of one text, after decompression; the largest known graphs have about one million."""

_PNG = b"\x89PNG\r\n\x1a\n"
_XMP = "XML:com.adobe.xmp"
_MOST = 64  # text chunks of one picture
_TOGETHER = 2 * LARGEST  # characters, after which no further chunk is read
_NAMED = re.compile(r"\s*(prompt|workflow)\s*:\s*(?=\{)", re.IGNORECASE)
_XMP_TEXTS = {
    name: re.compile(pattern, re.DOTALL)
    for name, pattern in {
        "Description": r"<dc:description>.{0,200}?<rdf:li[^>]{0,200}>([^<]*)</rdf:li>",
        "UserComment": r"<exif:UserComment>(?:.{0,200}?<rdf:li[^>]{0,200}>)?([^<]*)</",
        "CreatorTool": r"xmp:CreatorTool(?:>|=[\"'])([^<\"']*)",
    }.items()
}

Texts = dict[str, str]


def read_texts(stream: BinaryIO) -> tuple[Texts, list[str]]:
    """Return texts by name (PNG keyword or EXIF tag), and notes on what was not read.

    A name that occurs twice keeps its first text. A file that is not a picture has no texts.
    """
    stream.seek(0)
    start = stream.read(12)
    if start.startswith(_PNG):
        return _png_texts(stream)
    if jpeg_xl.is_jpeg_xl(start):
        return _jpeg_xl_texts(stream)
    stream.seek(0)
    try:
        with Image.open(stream, formats=FORMATS) as image:
            texts = _exif_texts(Image.Image.getexif(image))
            xmp = image.info.get("xmp", b"")
    except OSError as error:
        if error.errno is not None:  # the file system's own error; Pillow's have no number
            raise
        return {}, [f"unreadable header ({error})"]
    except Exception as error:  # headers fail in many ways on foreign bytes
        return {}, [f"unreadable header ({error!r:.200})"]
    return _xmp_texts(xmp if isinstance(xmp, bytes) else b"") | texts, []


def _jpeg_xl_texts(stream: BinaryIO) -> tuple[Texts, list[str]]:
    try:
        exif, xmp = jpeg_xl.read_metadata(stream)
        return _xmp_texts(xmp) | (_exif_chunk(exif) if exif else {}), []
    except OSError:
        raise
    except Exception as error:  # foreign bytes fail in many ways
        return {}, [f"unreadable metadata ({error!r:.200})"]


def _png_texts(stream: BinaryIO) -> tuple[Texts, list[str]]:
    """Return the texts before the pixels, or when there are none those after them."""
    texts: Texts = {}
    notes: list[str] = []
    end, position, seen = stream.seek(0, io.SEEK_END), len(_PNG), 0
    while position + 12 <= end and seen < _MOST and sum(map(len, texts.values())) < _TOGETHER:
        stream.seek(position)
        length, kind = struct.unpack(">I4s", stream.read(8))
        if kind == b"IEND" or (kind == b"IDAT" and texts):
            break
        if position + 12 + length > end:
            notes.append(f"a chunk cut short ({length} bytes claimed)")
            break
        position += 12 + length
        if kind not in _CHUNKS:
            continue
        seen += 1
        if length > LARGEST:
            notes.append(f"a text of {length} bytes; allowed: {LARGEST}")
            continue
        data = stream.read(length)
        try:
            texts = _CHUNKS[kind](data) | texts
        except Exception as error:  # one broken chunk must not cost the others
            notes.append(f"a broken {kind.decode()} chunk ({error})")
    return texts, notes


def _plain_chunk(data: bytes) -> Texts:
    keyword, _, text = data.partition(b"\0")
    return _named(keyword, text)


def _packed_chunk(data: bytes) -> Texts:
    keyword, _, rest = data.partition(b"\0")
    return _named(keyword, _inflate(rest[1:]))


def _international_chunk(data: bytes) -> Texts:
    keyword, _, rest = data.partition(b"\0")
    packed, text = rest[:1] == b"\1", rest[2:].split(b"\0", 2)[2]
    return _named(keyword, _inflate(text) if packed else text)


def _exif_chunk(data: bytes) -> Texts:
    exif = Image.Exif()
    exif.load(data)
    return _exif_texts(exif)


_CHUNKS = {
    b"tEXt": _plain_chunk,
    b"zTXt": _packed_chunk,
    b"iTXt": _international_chunk,
    b"eXIf": _exif_chunk,
}


def _named(keyword: bytes, text: bytes) -> Texts:
    name = keyword.decode("latin-1")
    return _xmp_texts(text) if name == _XMP else {name: _decode(text)}


def _inflate(data: bytes) -> bytes:
    text = zlib.decompressobj().decompress(data, LARGEST + 1)
    if len(text) > LARGEST:
        raise ValueError(f"it unpacks to more than {LARGEST} bytes")
    return text


def _decode(data: bytes) -> str:
    """Decode UTF-8, which many programs write against the standard, else Latin-1."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _exif_texts(exif: Image.Exif) -> Texts:
    comment = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
    values = {
        "UserComment": _comment(comment, exif.endian) if isinstance(comment, bytes) else comment,
        "ImageDescription": exif.get(ExifTags.Base.ImageDescription),
        "Software": exif.get(ExifTags.Base.Software),
        # ComfyUI's WebP writer puts its JSON into the tags of a camera's maker and model.
        "Make": exif.get(ExifTags.Base.Make),
        "Model": exif.get(ExifTags.Base.Model),
    }
    texts: Texts = {}
    for tag, value in values.items():
        if not isinstance(value, str) or not (text := _reread(value).strip("\0 ")):
            continue
        if name := _NAMED.match(text):
            texts.setdefault(name[1].lower(), text[name.end() :])
        else:
            texts[tag] = text
    return texts


def _reread(value: str) -> str:
    """Decode an EXIF string as UTF-8, which programs write and Pillow reads as Latin-1."""
    try:
        return _decode(value.encode("latin-1"))
    except UnicodeEncodeError:
        return value


def _comment(data: bytes, endian: str | None) -> str:
    """Decode an EXIF UserComment: 8 bytes name the character set, then comes the text."""
    charset, text = data[:8], data[8:]
    if charset == b"UNICODE\0":
        return decode_utf_16(text, "big" if endian == ">" else "little")
    if charset in (b"ASCII\0\0\0", bytes(8)):
        return _decode(text)
    return _decode(data)


def _xmp_texts(xmp: bytes) -> Texts:
    text = xmp[:LARGEST].decode("utf-8", "replace")
    matches = {name: pattern.search(text) for name, pattern in _XMP_TEXTS.items()}
    return {
        name: html.unescape(match[1])
        for name, match in matches.items()
        if match and match[1].strip()
    }
