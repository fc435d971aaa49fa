"""Texts hidden in the lowest bits of the alpha channel, by NovelAI and an AUTOMATIC1111 extension.

The bits run down the columns: a signature, the length of the data in bits (32 of them), the data.
They outlive programs that drop text chunks, as long as the pixels are stored exactly.
"""

import json
import zlib
from typing import BinaryIO

import numpy as np
from PIL import Image

from img2prompt.data.images import FORMATS
from img2prompt.data.sources.metadata.base import json_object
from img2prompt.data.sources.metadata.texts import LARGEST, Texts

PLAIN, PACKED = b"stealth_pnginfo", b"stealth_pngcomp"
_SIGNATURE = len(PLAIN)
_JPEG = b"\xff\xd8"
_MOST_PIXELS = 24 << 20
_GZIP = 31  # zlib's window bits for a gzip header


def read_hidden_texts(stream: BinaryIO) -> Texts:
    """Return the texts by name; none for a picture without an alpha channel or a signature.

    Pixels are decoded, but only those of pictures with an alpha channel and up to 24 megapixels.
    """
    stream.seek(0)
    if stream.read(2) == _JPEG:
        return {}
    stream.seek(0)
    try:
        with Image.open(stream, formats=FORMATS) as image:
            if image.mode != "RGBA" or image.width * image.height > _MOST_PIXELS:
                return {}
            alpha = np.asarray(image.getchannel("A"))
        return _texts(_payload(alpha))
    except OSError as error:
        if error.errno is not None:  # the file system's own error; Pillow's have no number
            raise
        return {}
    except Exception:  # foreign pixels and foreign bytes fail in many ways
        return {}


def _payload(alpha: np.ndarray) -> bytes:
    """Return the data after the signature; empty without one. `alpha` is [height, width]."""
    signature, length = _bytes(alpha, 0, _SIGNATURE), _bytes(alpha, _SIGNATURE, 4)
    if signature not in (PLAIN, PACKED):
        return b""
    payload = _bytes(alpha, _SIGNATURE + 4, int.from_bytes(length, "big") // 8)
    return payload if signature == PLAIN else zlib.decompressobj(_GZIP).decompress(payload, LARGEST)


def _bytes(alpha: np.ndarray, start: int, length: int) -> bytes:
    """Return bytes from their bits, which run down the columns; fewer at the end of the picture."""
    height = alpha.shape[0]
    first, last = start * 8 // height, -(-(start + length) * 8 // height)
    bits = alpha[:, first:last].T.reshape(-1) & 1
    skipped = start * 8 - first * height
    return np.packbits(bits[skipped : skipped + length * 8]).tobytes()


def _texts(payload: bytes) -> Texts:
    """Return NovelAI's texts, a JSON object, or else AUTOMATIC1111's `parameters`."""
    text = payload.decode("utf-8")
    if (record := json_object(text)) is None:
        return {"parameters": text} if text.strip() else {}
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in record.items()
    }
