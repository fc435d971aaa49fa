"""The whole pipeline, from raw pictures to scores and prompts."""

from dataclasses import dataclass, field

from img2prompt.config.base import Config, check
from img2prompt.config.predict import EvaluateConfig, PredictConfig
from img2prompt.config.prepare import FeaturesConfig, PrepareConfig
from img2prompt.config.ranges import PositiveInt
from img2prompt.config.train import TrainConfig


@dataclass(frozen=True, kw_only=True)
class ChainConfig(Config):
    """All stages, from raw pictures to scores and prompts."""

    prepare: PrepareConfig
    features: FeaturesConfig
    probe: TrainConfig
    finetune: TrainConfig
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    predict: PredictConfig = field(default_factory=PredictConfig)
    """With no `pictures` folder, samples of the test split are predicted."""
    samples: PositiveInt = 8
    """Test pictures that are written out, predicted and shown at the end."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(
            self.finetune.start_from in ("", self.probe.name),
            "finetune.start_from",
            self.finetune.start_from,
            f"empty or {self.probe.name!r}",
        )
        folds, abstain = self.evaluate.folds, self.predict.abstain
        check(folds == 0, "evaluate.folds", folds, "0 here: folds score probes (jobs/evaluate.py)")
        check(
            abstain == -1,
            "predict.abstain",
            abstain,
            "-1 here: a run has confidences after jobs/calibrate.py",
        )
