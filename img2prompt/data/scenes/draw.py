"""Draw a scene: a background, subjects by font glyphs, and a style.

Scenes are drawn at twice the size and reduced, for smooth edges. All randomness comes from one
generator that the caller seeds, so a picture can be reproduced from its number.
"""

import importlib.util
import io
import json
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from img2prompt.data.scenes import vocabulary
from img2prompt.data.scenes.backgrounds import BACKGROUNDS, Rng
from img2prompt.data.scenes.compose import Scene, Subject
from img2prompt.data.scenes.styles import STYLES, Layers

FONTS = {
    "mdi": "materialdesignicons6-webfont{}-6.9.96",
    "fa": "fontawesome6-solid-webfont{}-6.7.2",
}
"""File names without ending; `{}` is `-charmap` for the JSON file with the glyphs' code points."""


def draw(scene: Scene, rng: Rng, size: int) -> tuple[bytes, str]:
    """Draw a scene; return the picture as file bytes, and its format (`png`, `jpeg` or `webp`)."""
    image = render(scene, rng, size)
    kind = ("png", "jpeg", "webp")[rng.integers(3)]
    sink = io.BytesIO()
    quality = {} if kind == "png" else {"quality": int(rng.integers(80, 96))}
    image.save(sink, kind, **quality)
    return sink.getvalue(), kind


def render(scene: Scene, rng: Rng, size: int) -> Image.Image:
    """Draw a scene as an RGB image of size x size pixels."""
    side = 2 * size
    background = BACKGROUNDS[scene.background](rng, side)
    subjects = Image.new("RGBA", (side, side))
    for subject, boxes in _placements(scene, rng, side):
        for box in boxes:
            _stamp(subjects, subject, box, rng)
    image = STYLES[scene.style](Layers(background, subjects, rng))
    image = _grain(image, rng, sigma=float(rng.uniform(0, 8)))
    return image.resize((size, size), Image.Resampling.BOX)


Box = tuple[float, float, float]  # centre x, centre y, side: shares of the picture


def _placements(scene: Scene, rng: Rng, side: int) -> list[tuple[Subject, list[Box]]]:
    subject, other = scene.subject, scene.other
    if other is None:
        boxes = _arranged(subject.count, scene.arrangement, rng)
        return [(subject, [(x, y, s * _scale(subject)) for x, y, s in boxes])]
    boxes_of: dict[str, tuple[Box, Box]] = {
        "beside": ((0.28, 0.55, 0.46), (0.74, 0.55, 0.46)),
        "above": ((0.5, 0.27, 0.44), (0.5, 0.75, 0.44)),
        "inside": ((0.42, 0.66, 0.48), (0.58, 0.38, 0.58)),
    }
    one, two = (
        (x + rng.uniform(-0.05, 0.05), y + rng.uniform(-0.05, 0.05), s)
        for x, y, s in boxes_of[scene.relation]
    )
    one, two = (*one[:2], one[2] * _scale(subject)), (*two[:2], two[2] * _scale(other))
    return [(other, [two]), (subject, [one])]  # the first subject is in front


def _scale(subject: Subject) -> float:
    return vocabulary.SIZES[subject.size]


def _arranged(count: int, arrangement: str, rng: Rng) -> list[Box]:
    if count == 1:
        return [(rng.uniform(0.42, 0.58), rng.uniform(0.42, 0.58), rng.uniform(0.55, 0.66))]
    if arrangement == "scattered":
        cells = [(x, y) for x in (0.28, 0.72) for y in (0.28, 0.72)]
        chosen = rng.permutation(4)[:count]
        return [
            (cells[c][0] + rng.uniform(-0.08, 0.08), cells[c][1] + rng.uniform(-0.08, 0.08), 0.36)
            for c in chosen
        ]
    steps = [(i + 0.5) / count for i in range(count)]
    across = 0.5 + rng.uniform(-0.12, 0.12)
    if arrangement == "row":
        return [(step, across, 0.92 / count) for step in steps]
    return [(across, step, 0.92 / count) for step in steps]


def _stamp(canvas: Image.Image, subject: Subject, box: Box, rng: Rng) -> None:
    x, y, share = box
    pixels = max(8, int(share * canvas.width))
    mask = _glyph(vocabulary.subjects()[subject.name], pixels)
    mask = mask.rotate(float(rng.normal(0, 6)), Image.Resampling.BILINEAR, expand=True)
    if rng.random() < 0.5:
        mask = ImageOps.mirror(mask)
    jitter = rng.integers(-14, 15, 3)
    red, green, blue = (
        int(np.clip(c + j, 0, 255))
        for c, j in zip(vocabulary.COLOURS[subject.colour], jitter, strict=True)
    )
    paint = Image.new("RGBA", mask.size, (red, green, blue, 255))
    corner = (int(x * canvas.width - mask.width / 2), int(y * canvas.height - mask.height / 2))
    canvas.paste(paint, corner, mask)


@cache
def _font_folder() -> Path:
    # Importing qtawesome would look for Qt; only its font files are needed.
    spec = importlib.util.find_spec("qtawesome")
    assert spec is not None, "qtawesome is a dependency of this package"
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "fonts"


@cache
def _charmap(font: str) -> dict[str, str]:
    return json.loads((_font_folder() / f"{FONTS[font].format('-charmap')}.json").read_text())


@cache
def _typeface(font: str, pixels: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(_font_folder() / f"{FONTS[font].format('')}.ttf"), pixels)


def _glyph(name: str, pixels: int) -> Image.Image:
    """Return the coverage (mode L) of a glyph, cropped to its ink."""
    font, _, glyph = name.rpartition(":")
    font = font or "mdi"
    face = _typeface(font, pixels)
    character = chr(int(_charmap(font)[glyph], 16))
    left, top, right, bottom = face.getbbox(character)
    mask = Image.new("L", (int(right - left) + 4, int(bottom - top) + 4))
    ImageDraw.Draw(mask).text((2 - left, 2 - top), character, fill=255, font=face)
    return mask


def _grain(image: Image.Image, rng: Rng, sigma: float) -> Image.Image:
    noise = rng.normal(0, sigma, (image.height, image.width, 1))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
