"""From the name in `--run` or `--runs` to a predictor. A new predictor gets its name here."""

from img2prompt.predictors.base import PredictorSpec
from img2prompt.predictors.blend import open_blend
from img2prompt.predictors.mean import MeanVector
from img2prompt.predictors.trained import TrainedRun
from img2prompt.workspace import MEAN, NEIGHBOURS, Workspace


def choose_predictor(name: str, workspace: Workspace, neighbours: int = 5) -> PredictorSpec:
    """Return the built-in predictor, finished blend or run of that name in the workspace.

    `neighbours`: training pictures that NEIGHBOURS averages. Members of a blend keep their number.

    Raises UserError when the run, shards or features are missing.
    """
    if name == MEAN:
        return MeanVector(workspace.open_shards(), name=name)
    if name == NEIGHBOURS:
        from img2prompt.predictors.neighbours import NearestNeighbours  # needs faiss

        features, shards = workspace.open_features(), workspace.open_shards()
        return NearestNeighbours(features, shards, neighbours, name=name)
    if blend := workspace.open_blend(name):
        count = blend.config["neighbours"]
        members = [choose_predictor(own, workspace, count) for own in blend.config["runs"]]
        return open_blend(blend, members, name)
    return TrainedRun(workspace.open_run(name), name=name)
