"""From the name in `--run` to a predictor."""

from img2prompt.artifact import Artifact
from img2prompt.errors import UserError
from img2prompt.predictors.base import PredictorSpec
from img2prompt.predictors.mean import MeanVector
from img2prompt.predictors.neighbours import NearestNeighbours
from img2prompt.predictors.trained import TrainedRun
from img2prompt.prepare import features, shard
from img2prompt.storage import exists, join
from img2prompt.train import preflight

MEAN, NEIGHBOURS = "mean", "neighbours"
BUILT_IN = (NEIGHBOURS, MEAN)
"""Names of predictors that need no training run."""


def choose_predictor(name: str, out: str, neighbours: int = 5) -> PredictorSpec:
    """Return the built-in predictor or the finished run of that name under `out`.

    `neighbours`: training pictures that NEIGHBOURS averages.

    Raises UserError when the run, shards or features are missing, and when a run has the name of
    a built-in predictor.
    """
    folder = join(out, "runs", name)
    if name not in BUILT_IN:
        return TrainedRun(Artifact.load(folder, preflight.STAGE), name=name)
    if exists(folder):
        raise UserError(
            f"{name!r} is both the run in {folder} and a built-in predictor: rename that folder"
        )
    shards = Artifact.load(join(out, "shards"), shard.STAGE)
    if name == MEAN:
        return MeanVector(shards, name=MEAN)
    embedded = Artifact.load(join(out, "features"), features.STAGE)
    return NearestNeighbours(embedded, shards, neighbours, name=NEIGHBOURS)
