"""UTF-16 without a declared byte order, as EXIF comments have it."""

import re
from typing import Literal

Order = Literal["big", "little"]

_CODECS = {"big": "utf-16-be", "little": "utf-16-le"}
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
_FEWEST = 4  # ASCII characters that outweigh the byte order of the file


def decode_utf_16(data: bytes, order: Order) -> str:
    """Decode UTF-16 by its mark, else in `order`, the byte order of the file that contains it.

    The standard asks for the order of the file. Programs that write big-endian into little-endian
    files are recognised by text that is valid, and reads as ASCII, only in the other order. A few
    programs write UTF-8 here.
    """
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", "replace")
    if (text := _utf_8(data)) is not None:
        return text
    other: Order = "little" if order == "big" else "big"
    own, swapped = (data.decode(_CODECS[name], "replace") for name in (order, other))
    return swapped if _reads_better(swapped, own) else own


def _utf_8(data: bytes) -> str | None:
    """Return UTF-8 text; None for bytes that are not, or whose control characters say UTF-16.

    Most scripts below U+2000 have a control character as the high byte of each letter.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return None if _CONTROL.search(text.rstrip("\0")) or text.count("\t") * 4 > len(text) else text


def _reads_better(swapped: str, own: str) -> bool:
    """Return whether the other byte order is the right one beyond doubt.

    Each ASCII character is a rare one of other scripts when its bytes are swapped. The reverse
    happens too (U+4E00, the Chinese character for one, becomes "N"), but seldom.
    """
    if ("\ufffd" in own) != ("\ufffd" in swapped):
        return "\ufffd" in own
    letters = sum(character.isascii() for character in swapped)
    enough = letters >= _FEWEST and letters * 10 > len(swapped)
    return enough and letters > 2 * sum(character.isascii() for character in own)
