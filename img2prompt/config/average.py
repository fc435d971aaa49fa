"""Averages of finished runs' weights."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from img2prompt.config.base import Config, check
from img2prompt.config.ranges import Fraction, PositiveInt


@dataclass(frozen=True, kw_only=True)
class AverageConfig(Config):
    """One run from the weights of others, at the cost of one model to predict with."""

    name: str = "average"
    """Folder name of the result under `runs/`."""
    runs: Annotated[tuple[str, ...], Field(min_length=1)] = ("lora",)
    """Training runs under `runs/`: those of a soup, of one model and data set, or the one that
    `wise-ft` interpolates."""
    how: Literal["wise-ft", "soup"] = "wise-ft"
    """`wise-ft`: interpolate a fine-tune with its base, the pretrained tower under the head that it
    started from (arXiv 2109.01903). `soup`: the mean of the runs that raise it, best run first
    (greedy soup, arXiv 2203.05482)."""
    alpha: Fraction = 0.5
    """Share of the fine-tune in `wise-ft`: 0 is its base, 1 the fine-tune. The paper's choice
    without tuning is 0.5."""
    batch_size: PositiveInt = 64
    """Validation pictures of a forward pass."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.how == "soup":
            good = len(set(self.runs)) == len(self.runs) > 1
            check(good, "runs", self.runs, "two or more runs, each once, with how soup")
        else:
            check(len(self.runs) == 1, "runs", self.runs, "one run with how wise-ft")
        check(self.name not in self.runs, "name", self.name, "another name than those of the runs")
