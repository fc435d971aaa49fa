"""A prompt without settings, written by an unknown program."""

from collections.abc import Mapping

from img2prompt.data.sources.metadata.base import Metadata, NoPrompt

NAMES = ("prompt", "Prompt", "parameters", "Description", "UserComment", "ImageDescription")
"""The first of these that holds text is the prompt."""


def read(texts: Mapping[str, str]) -> Metadata | None:
    """Return the first text as the prompt.

    Raises:
        NoPrompt: the text is markup of an unknown program, not a prompt.
    """
    for name in NAMES:
        text = texts.get(name, "").strip()
        if text.startswith(("{", "[{", "<?xml", "<x:xmpmeta")):
            raise NoPrompt(f"unknown metadata: {name!r} begins with {text[:60]!r}")
        if text:
            return Metadata(prompt=text)
    return None
