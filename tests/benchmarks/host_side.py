"""Compare our path from a picture's bytes to the tower's size with CLIP's processor, on one core.

All decode the same JPEG, PNG and WebP files of 512 pixels and resize them to `--size` by the rule
of CLIP's processor (shorter side, centre crop, bicubic with antialias). Pillow with the processor
as people run it also makes normalised floats, which we leave to the device; the last column has it
without floats, so that it does exactly what ours does. Ours must give the same pictures as that: at
most one value in fifty may differ, by one or two levels.

Measured on one core of an AMD EPYC (Zen 5), 48 real pictures, 336 pixels; pictures a second:

    file    ours   Pillow + CLIP's processor   ... without floats
    JPEG     752          244 (3.1x)              308 (2.4x)
    PNG      236          126 (1.9x)              140 (1.7x)
    WEBP     317          171 (1.9x)              199 (1.6x)

    python tests/benchmarks/host_side.py
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
import tyro
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from img2prompt import cli
from img2prompt.data import images

REAL = Path(__file__).parents[3] / "shared" / "data" / "pictures"
KINDS: dict[str, dict[str, object]] = {
    "JPEG": {"quality": 95},
    "PNG": {},
    "WEBP": {"quality": 90},
}

OURS, THEIRS, RESIZED = "ours", "Pillow + CLIP's processor", "... without floats"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Pictures, sizes and repeats."""

    pictures: Path = REAL
    """Folder of pictures; noise if it does not exist."""
    count: int = 48
    side: int = 512
    """Width and height of the files in pixels."""
    size: int = 336
    """Side of the tower's pictures in pixels."""
    repeats: int = 5
    """Rounds in which all loaders take turns; the fastest counts."""


def base(options: Options) -> list[Image.Image]:
    """Return square pictures to write as files."""
    side = (options.side, options.side)
    if not options.pictures.exists():
        rng = np.random.default_rng(0)
        small = rng.integers(0, 256, (options.count, 64, 64, 3), np.uint8)
        return [Image.fromarray(pixels).resize(side) for pixels in small]
    paths = sorted(options.pictures.iterdir())
    chosen = paths[:: max(1, len(paths) // options.count)][: options.count]
    return [Image.open(path).convert("RGB").resize(side) for path in chosen]


def encoded(pictures: list[Image.Image], kind: str) -> list[bytes]:
    files = []
    for picture in pictures:
        sink = BytesIO()
        picture.save(sink, kind, **KINDS[kind])
        files.append(sink.getvalue())
    return files


def ours(size: int) -> Callable[[bytes], np.ndarray]:
    return lambda data: images.resize(images.decode(data), size, "crop")


def clips(size: int, *, floats: bool) -> Callable[[bytes], np.ndarray]:
    """Return a loader by Pillow and transformers' own Pillow processor; (size, size, 3)."""
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        do_rescale=floats,
        do_normalize=floats,
    )

    def load(data: bytes) -> np.ndarray:
        picture = Image.open(BytesIO(data)).convert("RGB")
        return processor(picture, return_tensors="np").pixel_values[0].transpose(1, 2, 0)

    return load


def check_same(picture: np.ndarray, expected: np.ndarray) -> None:
    """Raise AssertionError for pictures that differ by more than rounding."""
    away = np.abs(picture.astype(int) - expected)
    assert away.max() <= 2, f"{away.max()} levels apart"
    assert (away > 0).mean() < 0.02, f"{(away > 0).mean():.1%} of the values differ"


def rates(
    loaders: dict[str, Callable[[bytes], np.ndarray]], files: list[bytes], repeats: int
) -> dict[str, float]:
    """Return pictures a second of CPU time, the best of several rounds in which all take turns."""
    best = dict.fromkeys(loaders, float("inf"))
    for _ in range(repeats):
        for name, load in loaders.items():
            began = time.process_time()
            for data in files:
                load(data)
            best[name] = min(best[name], time.process_time() - began)
    return {name: len(files) / seconds for name, seconds in best.items()}


def run(options: Options) -> dict[str, dict[str, float]]:
    """Measure every kind of file and print the table."""
    torch.set_num_threads(1)
    loaders = {
        OURS: ours(options.size),
        THEIRS: clips(options.size, floats=True),
        RESIZED: clips(options.size, floats=False),
    }
    measured, pictures = {}, base(options)
    for kind in KINDS:
        files = encoded(pictures, kind)
        for data in files:
            check_same(loaders[OURS](data), loaders[RESIZED](data))
        measured[kind] = rates(loaders, files, options.repeats)
    cli.show(
        f"{len(pictures)} pictures of {options.side} px to {options.size} px, pictures/s a core",
        ["file", *loaders],
        [
            [kind, *(f"{rate:.0f} ({row[OURS] / rate:.1f}x)" for rate in row.values())]
            for kind, row in measured.items()
        ],
    )
    return measured


if __name__ == "__main__":
    run(tyro.cli(Options, description=__doc__))
