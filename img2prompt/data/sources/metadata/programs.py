"""The prompt in a picture's metadata. A new program is one module and one entry in PROGRAMS."""

from typing import BinaryIO

from img2prompt.data.sources.metadata import (
    automatic1111,
    comfyui,
    drawthings,
    easydiffusion,
    fooocus,
    invokeai,
    midjourney,
    mochi,
    novelai,
    plain,
    swarmui,
)
from img2prompt.data.sources.metadata.base import Metadata, NoPrompt, Program
from img2prompt.data.sources.metadata.stealth import read_hidden_texts
from img2prompt.data.sources.metadata.texts import Texts, read_texts

PROGRAMS: tuple[Program, ...] = (
    swarmui.PROGRAM,
    easydiffusion.PROGRAM,
    fooocus.PROGRAM,
    invokeai.PROGRAM,
    novelai.PROGRAM,
    drawthings.PROGRAM,
    mochi.PROGRAM,
    midjourney.PROGRAM,
    automatic1111.PROGRAM,
    comfyui.PROGRAM,
)
"""Tried in this order; the first that returns a prompt wins. Structured records come before lines
of text, which look alike, and the final prompt before ComfyUI's graph, which has to be followed.
`plain.read` is the last resort, for pictures in which none of these programs has written anything:
a text of unknown origin."""


def read_metadata(stream: BinaryIO) -> Metadata:
    """Return the prompt and settings in a picture's text chunks, EXIF, XMP or alpha channel.

    `stream` is a seekable file, of which little more than the header is read (all of it for WebP,
    and the chunk heads of a PNG that has no text before its pixels). Pixels are decoded only where
    an alpha channel may hide texts and no program has written any beside the pixels.

    Raises:
        NoPrompt: the picture contains no prompt; the message says what it does contain.
        OSError: the file cannot be read.
    """
    texts, notes = read_texts(stream)
    if metadata := _written(texts):
        return metadata
    if not notes and (metadata := _written(read_hidden_texts(stream))):
        return metadata
    if metadata := plain.read(texts):
        return metadata
    carried = ", ".join(sorted(texts)[:8])[:200] if texts else "no text"
    raise NoPrompt(f"no prompt: the picture carries {'; '.join([carried, *notes])}")


def _written(texts: Texts) -> Metadata | None:
    """Return the metadata of the first program that wrote a prompt; None when none wrote any."""
    reasons = []
    for program in PROGRAMS:
        try:
            if metadata := program.read(texts):
                return metadata
        except NoPrompt as error:
            reasons.append(str(error))
    if reasons:
        raise NoPrompt(reasons[0])
    return None
