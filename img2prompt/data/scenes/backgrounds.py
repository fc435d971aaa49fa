"""Backgrounds of scenes: a few shapes each, varied at random."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Rng = np.random.Generator
Colour = tuple[int, int, int]


def _vary(colour: Colour, rng: Rng, amount: int = 16) -> Colour:
    red, green, blue = (int(np.clip(c + rng.integers(-amount, amount + 1), 0, 255)) for c in colour)
    return red, green, blue


def _gradient(top: Colour, bottom: Colour, side: int) -> Image.Image:
    steps = np.linspace(0, 1, side)[:, None, None]
    rows = np.array(top) * (1 - steps) + np.array(bottom) * steps
    return Image.fromarray(np.broadcast_to(rows, (side, side, 3)).astype(np.uint8))


def _ground(sky: Colour, ground: Colour, rng: Rng, side: int) -> Image.Image:
    red, green, blue = (min(255, c + 40) for c in sky)
    image = _gradient(_vary(sky, rng), (red, green, blue), side)
    horizon = int(side * rng.uniform(0.55, 0.72))
    ImageDraw.Draw(image).rectangle((0, horizon, side, side), fill=_vary(ground, rng))
    return image


def _scatter(
    image: Image.Image, rng: Rng, count: int, radius: float, colour: Colour
) -> Image.Image:
    pen = ImageDraw.Draw(image)
    for x, y in rng.uniform(0, image.width, (count, 2)):
        r = radius * rng.uniform(0.6, 1.4)
        pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)
    return image


def _plain(rng: Rng, side: int) -> Image.Image:
    shades: list[Colour] = [(236, 232, 222), (206, 214, 222), (190, 190, 186), (228, 214, 196)]
    return Image.new("RGB", (side, side), _vary(shades[rng.integers(len(shades))], rng))


def _night(rng: Rng, side: int) -> Image.Image:
    return _scatter(
        _gradient((8, 10, 40), (34, 30, 84), side), rng, 40, side / 110, (255, 250, 210)
    )


def _meadow(rng: Rng, side: int) -> Image.Image:
    image = _ground((120, 180, 240), (96, 178, 72), rng, side)
    pen = ImageDraw.Draw(image)
    for x in rng.uniform(0, side, 30):
        y = side * rng.uniform(0.72, 1.0)
        pen.line((x, y, x + side * 0.02, y - side * 0.06), fill=(60, 130, 50), width=2)
    return image


def _desert(rng: Rng, side: int) -> Image.Image:
    return _ground((250, 206, 140), (222, 178, 98), rng, side)


def _sunset(rng: Rng, side: int) -> Image.Image:
    image = _gradient(_vary((90, 40, 120), rng), _vary((255, 140, 60), rng), side)
    return _scatter(image, rng, 1, side * 0.12, (255, 214, 120))


def _sea(rng: Rng, side: int) -> Image.Image:
    image = _ground((170, 212, 244), (30, 110, 176), rng, side)
    pen = ImageDraw.Draw(image)
    for _ in range(14):
        x, y, w = rng.uniform(0, side), side * rng.uniform(0.68, 1.0), side * 0.09
        pen.arc((x, y, x + w, y + w / 2), 180, 360, fill=(220, 240, 250), width=2)
    return image


def _snow(rng: Rng, side: int) -> Image.Image:
    return _scatter(
        _ground((176, 192, 212), (240, 244, 248), rng, side), rng, 50, side / 90, (255, 255, 255)
    )


def _rain(rng: Rng, side: int) -> Image.Image:
    image = _gradient((88, 98, 112), (134, 144, 154), side)
    pen = ImageDraw.Draw(image)
    for x, y in rng.uniform(-0.1, 1.0, (46, 2)) * side:
        pen.line((x, y, x + side * 0.04, y + side * 0.12), fill=(190, 206, 224), width=2)
    return image


def _tiles(
    rng: Rng, side: int, filled: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> Image.Image:
    light, dark = _vary((236, 230, 214), rng), _vary((150, 140, 128), rng)
    y, x = np.mgrid[:side, :side] / side
    chosen = filled(x, y)[..., None]
    return Image.fromarray(np.where(chosen, dark, light).astype(np.uint8))


def _checker(rng: Rng, side: int) -> Image.Image:
    return _tiles(rng, side, lambda x, y: ((x * 6).astype(int) + (y * 6).astype(int)) % 2 == 1)


def _stripes(rng: Rng, side: int) -> Image.Image:
    return _tiles(rng, side, lambda x, y: (x * 10).astype(int) % 2 == 1)


def _dots(rng: Rng, side: int) -> Image.Image:
    return _tiles(rng, side, lambda x, y: (x * 6 % 1 - 0.5) ** 2 + (y * 6 % 1 - 0.5) ** 2 < 0.09)


def _forest(rng: Rng, side: int) -> Image.Image:
    image = _gradient((22, 48, 34), (12, 26, 18), side)
    pen = ImageDraw.Draw(image)
    for x in rng.uniform(0, side, 9):
        w = side * rng.uniform(0.02, 0.05)
        pen.rectangle((x, 0, x + w, side), fill=_vary((58, 42, 28), rng, 10))
    return image


def _city(rng: Rng, side: int) -> Image.Image:
    image = _gradient((150, 170, 200), (210, 196, 190), side)
    pen = ImageDraw.Draw(image)
    for i in range(10):
        top = side * rng.uniform(0.62, 0.86)
        pen.rectangle(
            (i * side / 10, top, (i + 1) * side / 10, side), fill=_vary((70, 76, 92), rng)
        )
        for y in np.arange(top + 4, side, side * 0.06):
            pen.rectangle((i * side / 10 + 4, y, i * side / 10 + 8, y + 4), fill=(250, 230, 140))
    return image


def _fire(rng: Rng, side: int) -> Image.Image:
    image = _gradient((60, 14, 8), (196, 60, 10), side)
    pen = ImageDraw.Draw(image)
    for x in rng.uniform(0, side, 12):
        w, tip = side * 0.07, side * rng.uniform(0.35, 0.75)
        pen.polygon([(x - w, side), (x, tip), (x + w, side)], fill=_vary((255, 150, 30), rng, 30))
    return image.filter(ImageFilter.GaussianBlur(side / 64))


BACKGROUNDS: dict[str, Callable[[Rng, int], Image.Image]] = {
    "plain": _plain, "night": _night, "meadow": _meadow, "desert": _desert, "sunset": _sunset,
    "sea": _sea, "snow": _snow, "rain": _rain, "checker": _checker, "stripes": _stripes,
    "dots": _dots, "forest": _forest, "city": _city, "fire": _fire,
}  # fmt: skip
