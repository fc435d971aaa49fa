"""Evaluation, prediction and export of trained runs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

from pydantic import Field

from img2prompt.config.base import Config, check
from img2prompt.config.ranges import NonNegativeInt, PositiveInt
from img2prompt.config.views import View, check_views

Text = Literal["nearest", "composed"]
"""Kinds of readable prompts."""


@dataclass(frozen=True, kw_only=True)
class ComposeConfig(Config):
    """Prompts composed from the nearest known one, clause by clause, while the cosine rises."""

    phrases: tuple[str, ...] = ()
    """Text files with words and phrases, one a line, that may be added; empty: the clauses of the
    known prompts."""
    candidates: PositiveInt = 16
    """Changed texts that are encoded for each picture in each round. More give higher cosines and
    take longer."""


def _check_texts(texts: Sequence[str]) -> None:
    kinds = get_args(Text)
    check(len(set(texts)) == len(texts), "texts", tuple(texts), f"{', '.join(kinds)}, each once")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Config):
    """Scores of runs and baselines on a held-out split."""

    name: str = "evaluation"
    """Folder name of the result."""
    runs: tuple[str, ...] = ("probe", "lora")
    """Predictors that are scored: training runs, blends and calibrated runs under `runs/`, or
    `neighbours` or `mean`; with `folds`, probes. The mean training vector and the nearest
    neighbours are scored in any case, as baselines."""
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
    csls: NonNegativeInt = 0
    """Correct the order of the nearest prompts for hubs (CSLS), which are near to everything: known
    prompts around each one that are averaged, such as 10; 0: order by cosine."""
    texts: tuple[Text, ...] = ()
    """Readable prompts whose cosines with the true prompts are measured: `nearest` training
    prompts, and prompts `composed` from them."""
    compose: ComposeConfig = field(default_factory=ComposeConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_views(self.views)
        _check_texts(self.texts)
        allowed = "0 (off), or 3 or more: two are left to choose settings on"
        check(self.folds not in (1, 2), "folds", self.folds, allowed)
        fits = not (self.folds and self.texts)
        check(fits, "texts", self.texts, "none with --folds")
        fits = not self.texts or len(self.runs) > 0
        check(fits, "texts", self.texts, "none where --runs is empty")

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
    """Folder of pictures (with its sub-folders), or one picture. Other files are counted."""
    sample: str = ""
    """Sample submission, whose ids and order `submission.csv` gets; empty: all pictures, in
    ascending order of their file names without ending."""
    run: str = "lora"
    """Training run, blend or calibrated run under `runs/` that predicts, or `neighbours` (k-NN over
    the training pictures' features) or `mean` (the mean training vector)."""
    neighbours: PositiveInt = 5
    """Training pictures whose targets are averaged by `neighbours`."""
    nearest: PositiveInt = 3
    """Known prompts listed for each picture."""
    csls: NonNegativeInt = 0
    """Correct the order of the nearest prompts for hubs (CSLS), which are near to everything: known
    prompts around each one that are averaged, such as 10; 0: order by cosine."""
    prompts: str = ""
    """Text file of known prompts, one a line; empty: the training prompts."""
    batch_size: PositiveInt = 64
    views: tuple[View, ...] = ("plain",)
    """Views of each picture; the answer is the mean of the vectors for each, at unit length."""
    encoder: str = ""
    """Folder of the all-MiniLM-L6-v2 model; empty: that of the data set."""
    captions: Literal["none", "beside", "jsonl", "parquet"] = "none"
    """Where each picture's best prompt is also written: `beside` the picture (`a.txt`), or into
    one file."""
    abstain: Annotated[float, Field(ge=-1, le=1)] = -1.0
    """Confidence below which a picture gets no prompt but is listed as `unknown`, for predictors
    with confidences (`jobs/calibrate.py`)."""
    texts: tuple[Text, ...] = ("nearest",)
    """Readable prompts in `prompts.csv`: the `nearest` known ones, and one `composed` from the
    nearest and phrases."""
    compose: ComposeConfig = field(default_factory=ComposeConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_views(self.views)
        _check_texts(self.texts)
        fits = self.captions == "none" or len(self.texts) > 0
        check(fits, "captions", self.captions, "none where --texts is empty")


@dataclass(frozen=True, kw_only=True)
class BlendConfig(Config):
    """A weighted mean of several predictors' vectors, fitted on the validation split."""

    name: str = "blend"
    """Folder name under `runs/`, by which the blend predicts like a run."""
    runs: tuple[str, ...] = ("probe", "lora")
    """Members: training runs or other predictors under `runs/`, `neighbours` or `mean`."""
    per: Literal["member", "dimension"] = "member"
    """One weight for each member, or one for each member and each of the 384 dimensions."""
    scale: Literal["unit", "standard"] = "unit"
    """Members' vectors at unit length, or each dimension standardised too: to the mean and
    deviation of the true vectors."""
    folds: Annotated[int, Field(ge=2)] = 5
    """Folds of prompt groups on which fitted weights are compared with equal ones."""
    neighbours: PositiveInt = 5
    """Training pictures whose targets are averaged by `neighbours`."""
    batch_size: PositiveInt = 64
    views: tuple[View, ...] = ("plain",)
    """Views of each picture that members answer for while weights are fitted."""
    seed: NonNegativeInt = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_views(self.views)
        few = len(set(self.runs)) == len(self.runs) >= 2
        check(few, "runs", self.runs, "two predictors or more, each once")


@dataclass(frozen=True, kw_only=True)
class CalibrateConfig(Config):
    """The confidence of a predictor, fitted on the validation split."""

    name: str = "calibrated"
    """Folder name under `runs/`, by which the predictor with its confidence is used like a run."""
    run: str = "lora"
    """Predictor whose confidence is fitted: a training run or blend under `runs/`, or `neighbours`
    or `mean`."""
    neighbours: PositiveInt = 5
    """Training pictures with similar features that a confidence is computed from, and that `run`
    averages where it is `neighbours`."""
    folds: Annotated[int, Field(ge=2)] = 5
    """Folds of prompt groups on which the confidence is compared with the score."""
    batch_size: PositiveInt = 64
    seed: NonNegativeInt = 0


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Config):
    """A run as plain files that other programs load."""

    name: str = "export"
    """Folder name of the result."""
    run: str = "lora"
    """Training run under `runs/` that is exported."""
