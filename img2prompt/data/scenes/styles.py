"""Drawing styles: each turns a background and a layer of subjects into one picture."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageEnhance, ImageFilter, ImageOps


@dataclass(frozen=True)
class Layers:
    """Input of a style; both images have the same square size."""

    background: Image.Image
    """RGB."""
    subjects: Image.Image
    """RGBA, transparent where no subject is."""
    rng: np.random.Generator

    @property
    def side(self) -> int:
        return self.background.width

    @property
    def mask(self) -> Image.Image:
        return self.subjects.getchannel("A")

    def grown(self, pixels: int) -> Image.Image:
        """Return the subjects' mask, `pixels` wider on all sides."""
        return self.mask.filter(ImageFilter.MaxFilter(2 * pixels + 1))


def _over(background: Image.Image, subjects: Image.Image) -> Image.Image:
    result = background.convert("RGBA")
    result.alpha_composite(subjects)
    return result.convert("RGB")


def _halo(layers: Layers) -> Image.Image:
    """The background with a thin rim around the subjects, so that they stand out."""
    inside = np.asarray(layers.mask) > 127
    light = np.asarray(layers.subjects.convert("L"))[inside].mean() if inside.any() else 255
    rim = Image.new("RGB", layers.background.size, (20, 20, 24) if light > 90 else (240, 240, 240))
    return Image.composite(rim, layers.background, layers.grown(1))


def flat(layers: Layers) -> Image.Image:
    return _over(_halo(layers), layers.subjects)


def outline(layers: Layers) -> Image.Image:
    """Coloured contours on a washed-out page."""
    page = Image.blend(layers.background, Image.new("RGB", layers.background.size, "white"), 0.6)
    core = layers.mask.filter(ImageFilter.MinFilter(7))
    contour = ImageChops.subtract(layers.mask, core)
    rim = ImageChops.subtract(layers.grown(1), core)
    inked = Image.composite(Image.new("RGB", page.size, (30, 30, 30)), page, rim)
    return Image.composite(layers.subjects.convert("RGB"), inked, contour)


def watercolor(layers: Layers) -> Image.Image:
    """Soft edges, pale washes and blotches of pigment."""
    image = flat(layers).filter(ImageFilter.GaussianBlur(layers.side / 64))
    coarse = layers.rng.uniform(150, 255, (8, 8)).astype(np.uint8)
    blotches = Image.fromarray(coarse).resize(image.size, Image.Resampling.BICUBIC)
    pale = Image.blend(image, Image.new("RGB", image.size, (250, 246, 238)), 0.3)
    return Image.composite(pale, Image.new("RGB", image.size, (252, 250, 244)), blotches)


def pixel(layers: Layers) -> Image.Image:
    small = flat(layers).resize((24, 24), Image.Resampling.BOX)
    return ImageOps.posterize(small, 4).resize(layers.background.size, Image.Resampling.NEAREST)


def neon(layers: Layers) -> Image.Image:
    """Glowing tubes before a darkened background."""
    dark = ImageEnhance.Brightness(layers.background).enhance(0.3)
    tube = ImageChops.subtract(layers.mask, layers.mask.filter(ImageFilter.MinFilter(9)))
    colour = layers.subjects.convert("RGB")
    lit = ImageChops.lighter(colour, Image.new("RGB", colour.size, (70, 70, 70)))
    light = Image.composite(lit, Image.new("RGB", lit.size), tube)
    glow = light.filter(ImageFilter.GaussianBlur(layers.side / 28))
    return ImageChops.add(ImageChops.add(dark, ImageEnhance.Brightness(glow).enhance(1.6)), light)


def charcoal(layers: Layers) -> Image.Image:
    """Grey, grainy paper; a hint of the colours is left."""
    image = ImageEnhance.Color(flat(layers)).enhance(0.45)
    strokes = layers.rng.normal(0, 26, (layers.side, layers.side))
    smeared = np.cumsum(strokes, axis=1) - np.roll(np.cumsum(strokes, axis=1), 6, axis=1)
    shaded = np.asarray(image, dtype=np.float32) * 0.8 + 36 + smeared[..., None] * 0.25
    return Image.fromarray(np.clip(shaded, 0, 255).astype(np.uint8))


def mosaic(layers: Layers) -> Image.Image:
    """Panes between dark lead lines."""
    image = np.asarray(ImageEnhance.Color(flat(layers)).enhance(1.5)).copy()
    pane = layers.side // 9
    y, x = np.mgrid[: layers.side, : layers.side]
    lead = ((x + y) % pane < 2) | ((x - y) % pane < 2)
    image[lead] = (26, 24, 30)
    return Image.fromarray(image)


def paper(layers: Layers) -> Image.Image:
    """A white rim and a shadow to the lower right."""
    shift = layers.side // 28
    shadow = ImageChops.offset(layers.grown(2), shift, shift).filter(ImageFilter.GaussianBlur(2))
    shade = Image.new("RGB", layers.background.size, (30, 26, 24))
    image = Image.composite(
        shade, layers.background, shadow.point([v * 6 // 10 for v in range(256)])
    )
    image = Image.composite(Image.new("RGB", image.size, "white"), image, layers.grown(2))
    return _over(image, layers.subjects)


def photo(layers: Layers) -> Image.Image:
    """Sepia over half of the colour, dark corners, soft focus."""
    image = flat(layers).filter(ImageFilter.GaussianBlur(layers.side / 128))
    sepia = ImageOps.colorize(image.convert("L"), (44, 28, 12), (250, 232, 196))
    mixed = np.asarray(Image.blend(image, sepia, 0.6), dtype=np.float32)
    y, x = np.mgrid[-1 : 1 : layers.side * 1j, -1 : 1 : layers.side * 1j]
    light = np.clip(1.15 - 0.4 * (x**2 + y**2), 0, 1)[..., None]
    return Image.fromarray((mixed * light).astype(np.uint8))


def embroidery(layers: Layers) -> Image.Image:
    """Stitches: fine slanted ridges on the subjects, a weave behind them."""
    y, x = np.mgrid[: layers.side, : layers.side]
    stitch = np.where((x + 2 * y) % 8 < 4, 1.12, 0.72)[..., None]
    weave = np.where((x // 2 + y // 2) % 2 == 0, 1.05, 0.88)[..., None]
    inside = np.asarray(layers.mask, dtype=np.float32)[..., None] / 255
    image = np.asarray(flat(layers), dtype=np.float32)
    woven = image * (inside * stitch + (1 - inside) * weave)
    return Image.fromarray(np.clip(woven, 0, 255).astype(np.uint8))


def blueprint(layers: Layers) -> Image.Image:
    """Pale contours and a grid on blue paper; the subjects' colours are a faint wash."""
    image = Image.new("RGB", layers.background.size, (24, 62, 140))
    image = Image.blend(image, layers.background, 0.18)
    grid = np.asarray(image).copy()
    grid[:: layers.side // 12] = grid[:, :: layers.side // 12] = (70, 110, 184)
    image = Image.fromarray(grid)
    wash = layers.mask.point([value // 2 for value in range(256)])
    image = Image.composite(layers.subjects.convert("RGB"), image, wash)
    contour = ImageChops.subtract(layers.grown(1), layers.mask.filter(ImageFilter.MinFilter(3)))
    return Image.composite(Image.new("RGB", image.size, (226, 236, 252)), image, contour)


def chalk(layers: Layers) -> Image.Image:
    """Broken strokes on a dark green board; the background is a smudge on it."""
    board = Image.new("RGB", layers.background.size, (30, 52, 44))
    board = Image.blend(board, layers.background.filter(ImageFilter.GaussianBlur(3)), 0.15)
    core = layers.mask.filter(ImageFilter.MinFilter(9))
    contour = np.asarray(ImageChops.subtract(layers.grown(1), core), dtype=np.float32)
    dust = layers.rng.uniform(0.35, 1.0, contour.shape)
    strokes = Image.fromarray((contour * dust).astype(np.uint8))
    paint = layers.subjects.filter(ImageFilter.MaxFilter(3)).convert("RGB")
    pale = Image.blend(paint, Image.new("RGB", paint.size, "white"), 0.25)
    return Image.composite(pale, board, strokes)


STYLES: dict[str, Callable[[Layers], Image.Image]] = {
    "flat": flat,
    "outline": outline,
    "watercolor": watercolor,
    "pixel": pixel,
    "neon": neon,
    "charcoal": charcoal,
    "mosaic": mosaic,
    "paper": paper,
    "photo": photo,
    "embroidery": embroidery,
    "blueprint": blueprint,
    "chalk": chalk,
}
