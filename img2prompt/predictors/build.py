"""From the name in `--run` to a predictor."""

from img2prompt.errors import UserError
from img2prompt.predictors.base import PredictorSpec
from img2prompt.predictors.mean import MeanVector
from img2prompt.predictors.neighbours import NearestNeighbours
from img2prompt.predictors.trained import TrainedRun
from img2prompt.storage import exists
from img2prompt.workspace import Workspace

MEAN, NEIGHBOURS = "mean", "neighbours"
BUILT_IN = (NEIGHBOURS, MEAN)
"""Names of predictors that need no training run."""


def choose_predictor(name: str, workspace: Workspace, neighbours: int = 5) -> PredictorSpec:
    """Return the built-in predictor or the finished run of that name in the workspace.

    `neighbours`: training pictures that NEIGHBOURS averages.

    Raises UserError when the run, shards or features are missing, and when a run has the name of
    a built-in predictor.
    """
    if name not in BUILT_IN:
        return TrainedRun(workspace.open_run(name), name=name)
    if exists(folder := workspace.run(name)):
        raise UserError(
            f"{name!r} is both the run in {folder} and a built-in predictor: rename that folder"
        )
    if name == MEAN:
        return MeanVector(workspace.open_shards(), name=MEAN)
    shards = workspace.open_shards()
    return NearestNeighbours(workspace.open_features(), shards, neighbours, name=NEIGHBOURS)
