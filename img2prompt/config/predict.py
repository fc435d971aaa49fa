"""Evaluation, prediction and export of trained runs."""

from dataclasses import dataclass
from typing import Literal

from img2prompt.config.base import Config, check
from img2prompt.config.ranges import NonNegativeInt, PositiveInt
from img2prompt.config.views import View, check_views


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Config):
    """Scores of runs and baselines on a held-out split."""

    name: str = "evaluation"
    """Folder name of the result."""
    runs: tuple[str, ...] = ("probe", "lora")
    """Predictors that are scored: training runs under `runs/`, or `neighbours` or `mean`; with
    `folds`, probes. The mean training vector and the nearest neighbours are scored in any case, as
    baselines."""
    split: Literal["val", "test"] = "test"
    """Split that is scored, unless `folds` are."""
    folds: NonNegativeInt = 0
    """Grouped cross-validation: divide the similarity groups of all splits into this many folds,
    train the baselines and probes anew without each of them, and score every picture once. For
    small data sets, on cached features. 0: off."""
    neighbours: PositiveInt = 5
    """Training pictures whose targets are averaged by the nearest-neighbour baseline."""
    batch_size: PositiveInt = 64
    views: tuple[View, ...] = ("plain",)
    """Views of each picture; the answer is the mean of the vectors for each, at unit length."""
    seed: NonNegativeInt = 0
    """Seed of the division into folds."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_views(self.views)
        allowed = "0 (off), or 3 or more: two are left to choose settings on"
        check(self.folds not in (1, 2), "folds", self.folds, allowed)

    @property
    def scored(self) -> str:
        """Name of the scored pictures in tables and reports."""
        return "cross-validated" if self.folds else self.split


@dataclass(frozen=True, kw_only=True)
class PredictConfig(Config):
    """Prompts for a folder of pictures."""

    name: str = "predictions"
    """Folder name of the result."""
    pictures: str = ""
    """Folder of pictures; file names without ending become `imgId`. Other files are counted."""
    run: str = "lora"
    """Training run under `runs/` that predicts, or `neighbours` (k-NN over the training pictures'
    features) or `mean` (the mean training vector)."""
    neighbours: PositiveInt = 5
    """Training pictures whose targets are averaged by `neighbours`."""
    nearest: PositiveInt = 3
    """Real prompts listed for each picture."""
    prompts: str = ""
    """Text file, one prompt a line, to search for readable prompts; empty: training prompts."""
    batch_size: PositiveInt = 64
    views: tuple[View, ...] = ("plain",)
    """Views of each picture; the answer is the mean of the vectors for each, at unit length."""
    encoder: str = ""
    """Folder of the all-MiniLM-L6-v2 model for `prompts`; empty: the installed package."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_views(self.views)


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Config):
    """A run as plain files that other programs load."""

    name: str = "export"
    """Folder name of the result."""
    run: str = "lora"
    """Training run under `runs/` that is exported."""
