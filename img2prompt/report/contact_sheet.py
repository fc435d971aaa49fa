"""A contact sheet: small pictures with their prompts on one HTML page."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO

from PIL import Image

from img2prompt.report.html import render_page

SIDE = 240
"""Longest side of a small picture, in pixels."""


@dataclass(frozen=True)
class SheetPicture:
    """A picture on the sheet."""

    data: bytes
    """Encoded, at its full size."""
    prompt: str
    remark: str
    """A short line below the prompt."""


def contact_sheet(title: str, facts: Mapping[str, str], pictures: Sequence[SheetPicture]) -> str:
    """Return the page. `facts` are short values by name, shown above the pictures."""
    shown = [
        {"source": thumbnail(picture.data), "prompt": picture.prompt, "remark": picture.remark}
        for picture in pictures
    ]
    return render_page("contact_sheet.html", {}, {}, title=title, facts=facts, pictures=shown)


def thumbnail(data: bytes) -> str:
    """Return a picture as a data URI of a JPEG whose longest side is at most SIDE."""
    image = Image.open(BytesIO(data)).convert("RGB")
    image.thumbnail((SIDE, SIDE))
    sink = BytesIO()
    image.save(sink, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(sink.getvalue()).decode()}"
