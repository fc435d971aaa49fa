"""What is done with runs: evaluation, prediction, export, and the whole chain."""

from dataclasses import dataclass
from typing import Literal

from img2prompt.config.base import Config, check


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Config):
    """Scores of runs and baselines on a held-out split."""

    name: str = "evaluation"
    """Folder name of the result."""
    runs: tuple[str, ...] = ("probe", "lora")
    split: Literal["val", "test"] = "test"
    neighbours: int = 5
    """Training pictures whose targets are averaged by the nearest-neighbour baseline."""
    bootstrap: int = 1000
    """Resamples of prompts behind each 95 % interval."""
    batch_size: int = 64
    views: tuple[Literal["plain", "flip"], ...] = ("plain",)
    """Views of each picture; the answer is the mean of the vectors for each, at unit length."""
    seed: int = 0

    def __post_init__(self) -> None:
        check(self.neighbours >= 1, "neighbours", self.neighbours, "1 or more")
        check(self.bootstrap >= 100, "bootstrap", self.bootstrap, "100 or more")
        check(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")
        _check_views(self.views)
        check(self.seed >= 0, "seed", self.seed, "0 or more")


@dataclass(frozen=True, kw_only=True)
class PredictConfig(Config):
    """Prompts for a folder of pictures."""

    name: str = "predictions"
    """Folder name of the result."""
    pictures: str = ""
    """Folder of pictures (png, jpg, jpeg, webp); file names without ending become `imgId`."""
    run: str = "lora"
    """Training run under `runs/` that predicts, or `neighbours` (k-NN over the training pictures'
    features) or `mean` (the mean training vector)."""
    neighbours: int = 5
    """Training pictures whose targets are averaged by `neighbours`."""
    nearest: int = 3
    """Real prompts listed for each picture."""
    prompts: str = ""
    """Text file, one prompt a line, to search for readable prompts; empty: training prompts."""
    batch_size: int = 64
    views: tuple[Literal["plain", "flip"], ...] = ("plain",)
    """Views of each picture; the answer is the mean of the vectors for each, at unit length."""
    encoder: str = ""
    """Folder of the all-MiniLM-L6-v2 model for `prompts`; empty: the installed package."""

    def __post_init__(self) -> None:
        check(self.neighbours >= 1, "neighbours", self.neighbours, "1 or more")
        check(self.nearest >= 1, "nearest", self.nearest, "1 or more")
        check(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")
        _check_views(self.views)


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Config):
    """A run as plain files that other programs load."""

    name: str = "export"
    """Folder name of the result."""
    run: str = "lora"
    """Training run under `runs/` that is exported."""


def _check_views(views: tuple[str, ...]) -> None:
    good = len(views) > 0 and len(set(views)) == len(views)
    check(good, "views", views, "one or more of plain and flip, each once")
