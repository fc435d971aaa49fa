"""A prompt without settings, written by an unknown program.

A text named `prompt` or `parameters` is one. A description is one only when nothing says
otherwise: cameras, phones and photo editors write descriptions too.
"""

import re
from collections.abc import Mapping

from img2prompt.data.sources.metadata.base import DESCRIPTIONS, Metadata, NoPrompt

NAMES = ("prompt", "Prompt", "parameters", *DESCRIPTIONS)
"""The first of these that holds text is the prompt."""

_MARKUP = ("{", "[{", "<?xml", "<x:xmpmeta")
_SETTINGS = re.compile(
    r"^(?:Steps|Seed|Sampler|CFG scale|Guidance scale|Negative prompt): ",
    re.MULTILINE | re.IGNORECASE,
)
_EDITORS = re.compile(
    r"\b(?:acdsee|adobe|affinity|capture one|corel|darktable|gimp|lightroom|luminar|paint\.net"
    r"|photos? (?:editor|gallery|viewer)|photoshop|picasa|pixelmator|rawtherapee|screenshot"
    r"|snapseed|vsco)",
    re.IGNORECASE,
)
_DEFAULTS = re.compile(
    r"(?-i:(?:[A-Z]+ ){0,3}DIGITAL (?:STILL )?CAMERA)|(?:konica )?minolta digital camera"
    r"|sony dsc|samsung(?: camera pictures)?|dsc[\d_]*|dcim|dav|sdr|hdr\+?|r?hdr(?:pl)?|cof|edf|mde"
    r"|oznor\w*|exif[_ ]jpeg[\w ]*|jpeg|ascii|charset=\w+|binary comment|default|untitled|applemark"
    r"|(?:created|edited|made|processed|taken|shot|captured|optimi[sz]ed) (?:by|on|with) .{1,60}"
    r"|screen ?shot|(?:file written by|creator: gd-jpeg|lead technologies).*",
    re.IGNORECASE,
)


def read(texts: Mapping[str, str]) -> Metadata | None:
    """Return the first text as the prompt.

    Raises:
        NoPrompt: the text is markup or settings of an unknown program, or a photograph's caption.
    """
    for name in NAMES:
        text = texts.get(name, "").strip()
        if not text:
            continue
        if text.startswith(_MARKUP):
            raise NoPrompt(f"unknown metadata: {name!r} begins with {text[:60]!r}")
        if settings := _SETTINGS.search(text):
            raise NoPrompt(
                f"unknown metadata: {name!r} holds settings in an unknown form "
                f"({text[settings.start() :][:60]!r})"
            )
        if name in DESCRIPTIONS and (reason := _caption(text, texts)):
            raise NoPrompt(f"no prompt: {name!r} is {reason}: {text[:60]!r}")
        return Metadata(prompt=text)
    return None


def _caption(text: str, texts: Mapping[str, str]) -> str:
    """Return why a description is a caption and not a prompt; empty when nothing says so."""
    if _DEFAULTS.fullmatch(text):
        return "a default caption"
    if camera := " ".join(texts[name] for name in ("Make", "Model") if texts.get(name)):
        return f"the caption of a photograph by {camera[:60]!r}"
    for name in ("Software", "CreatorTool"):
        if _EDITORS.search(texts.get(name, "")):
            return f"a caption written with {texts[name][:60]!r}"
    return ""
