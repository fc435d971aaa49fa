"""Time and storage of a run, known before it starts, and their limits.

    device-hours = pictures * seconds a picture / 3600
    hours        = device-hours / actors
    storage      = pictures * bytes a picture

Seconds and bytes are measured on two batches of the run's own prompts: the first one compiles and
warms up, the second one is timed.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from img2prompt.config.generate import GenerateConfig
from img2prompt.data import images
from img2prompt.errors import UserError
from img2prompt.generate.pictures import Picture, PicturePipeline
from img2prompt.generate.plan import PictureRequest

HOUR = 3600.0
GIGABYTE = 1e9


@dataclass(frozen=True)
class Rate:
    """Measured speed and size."""

    seconds: float
    """Device-seconds of a picture."""
    bytes: float
    """Size of an encoded picture."""


@dataclass(frozen=True)
class Usage:
    """Device time and storage, used or expected."""

    seconds: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(self.seconds + other.seconds, self.bytes + other.bytes)

    @property
    def hours(self) -> float:
        """Device-hours."""
        return self.seconds / HOUR

    @property
    def gigabytes(self) -> float:
        return self.bytes / GIGABYTE

    def excess(self, config: GenerateConfig) -> str:
        """Return which limit of the config is exceeded, with both values; else an empty text."""
        if 0 < config.max_hours < self.hours:
            return f"{self.hours:.3g} device-hours; --max-hours allows {config.max_hours:g}"
        if 0 < config.max_gigabytes < self.gigabytes:
            return f"{self.gigabytes:.3g} GB; --max-gigabytes allows {config.max_gigabytes:g}"
        return ""


def measure(pipeline: PicturePipeline, requests: Sequence[PictureRequest], encoding: str) -> Rate:
    """Make a batch twice and return the rate of the second time.

    Raises:
        UserError: no picture of the batch can be used.
    """
    batch = requests[: pipeline.batch_size]
    pipeline.make(batch)
    began = time.perf_counter()
    results = pipeline.make(batch)
    seconds = time.perf_counter() - began
    pictures = [result for result in results if isinstance(result, Picture)]
    if not pictures:
        raise UserError(f"none of the first {len(batch)} pictures can be used: {results[0]}")
    sizes = [len(images.encode(picture.pixels, encoding)) for picture in pictures]  # type: ignore[arg-type]
    return Rate(seconds / len(batch), sum(sizes) / len(sizes))


def expected(rate: Rate, pictures: int) -> Usage:
    """Predict what so many pictures take."""
    return Usage(pictures * rate.seconds, pictures * rate.bytes)


def describe(rate: Rate, pictures: int, actors: int) -> str:
    """Return the plan of a run in one line."""
    usage = expected(rate, pictures)
    return (
        f"{pictures:,} pictures at {1 / rate.seconds:.3g} pictures/s a device (measured): "
        f"{usage.hours:.3g} device-hours, {usage.hours / actors:.3g} hours on {actors}; "
        f"{usage.gigabytes:.3g} GB at {rate.bytes / 1e3:.4g} kB a picture"
    )
