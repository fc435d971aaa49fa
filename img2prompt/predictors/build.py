"""From the name in `--run` or `--runs` to a predictor. A new predictor gets its name here."""

from img2prompt.predictors.base import PredictorSpec
from img2prompt.predictors.blend import open_blend
from img2prompt.predictors.mean import MeanVector
from img2prompt.predictors.trained import TrainedRun
from img2prompt.workspace import MEAN, NEIGHBOURS, Stage, Workspace


def choose_predictor(name: str, workspace: Workspace, neighbours: int = 5) -> PredictorSpec:
    """Return the built-in predictor, finished blend, calibrated predictor or run in the workspace.

    `neighbours`: training pictures that NEIGHBOURS averages. Members of a blend, and the predictor
    of a calibrated one, keep their number.

    Raises UserError when the run, shards or features are missing.
    """
    if name == MEAN:
        return MeanVector(workspace.open_shards(), name=name)
    if name == NEIGHBOURS:
        from img2prompt.predictors.neighbours import NearestNeighbours  # needs faiss

        features, shards = workspace.open_features(), workspace.open_shards()
        return NearestNeighbours(features, shards, neighbours, name=name)
    predictor = workspace.open_predictor(name)
    if predictor.stage == Stage.BLEND:
        count = predictor.config["neighbours"]
        members = [choose_predictor(own, workspace, count) for own in predictor.config["runs"]]
        return open_blend(predictor, members, name)
    if predictor.stage == Stage.CALIBRATION:
        from img2prompt.predictors.confidence import open_calibrated  # needs faiss

        count = predictor.config["neighbours"]
        base = choose_predictor(predictor.config["run"], workspace, count)
        features, shards = workspace.open_features(), workspace.open_shards()
        return open_calibrated(predictor, base, features, shards, name)
    return TrainedRun(predictor, name=name)
