"""The prompt that a picture carries itself, written there by the program that made it."""

from collections.abc import Callable, Mapping
from typing import BinaryIO

from img2prompt.data.sources.metadata import (
    automatic1111,
    comfyui,
    invokeai,
    json_parameters,
    novelai,
    plain,
)
from img2prompt.data.sources.metadata.base import Metadata, NoPrompt
from img2prompt.data.sources.metadata.texts import read_texts

__all__ = ["READERS", "Metadata", "NoPrompt", "read_metadata"]

READERS: tuple[Callable[[Mapping[str, str]], Metadata | None], ...] = (
    automatic1111.read,
    json_parameters.read,
    invokeai.read,
    novelai.read,
    comfyui.read,
)
"""Tried in this order; the first that finds a prompt wins. Texts that were final when they were
written stand before a graph that has to be followed. Last of all, where none of these programs has
written anything, comes `plain.read`: a text of unknown origin."""


def read_metadata(stream: BinaryIO) -> Metadata:
    """The prompt and settings in a picture's text chunks, EXIF or XMP; no pixel is decoded.

    `stream` is a seekable file, of which little more than the header is read (all of it for WebP,
    and the chunk heads of a PNG that has no text before its pixels).

    Raises:
        NoPrompt: the picture carries none; the text says what it does carry.
        OSError: the file cannot be read.
    """
    texts, notes = read_texts(stream)
    reasons = []
    for read in READERS:
        try:
            if found := read(texts):
                return found
        except NoPrompt as error:
            reasons.append(str(error))
    if reasons:
        raise NoPrompt(reasons[0])
    if found := plain.read(texts):
        return found
    carried = ", ".join(sorted(texts)[:8])[:200] if texts else "no text"
    raise NoPrompt(f"no prompt: the picture carries {'; '.join([carried, *notes])}")
