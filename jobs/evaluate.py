"""Score runs on held-out pictures, beside the mean vector and nearest neighbours."""

from img2prompt import cli, presets
from img2prompt.artifact import Artifact
from img2prompt.distributed import cluster
from img2prompt.predict import evaluate
from img2prompt.predictors.trained import TrainedRun
from img2prompt.prepare import features
from img2prompt.prepare import run as prepare
from img2prompt.storage import join
from img2prompt.train import preflight


def job() -> None:
    options = cli.parse(__doc__, presets.EVALUATE)
    config, out = options.config, options.out
    runs = [
        TrainedRun(Artifact.load(join(out, "runs", name), preflight.STAGE), name=name)
        for name in config.runs
    ]
    embedded = Artifact.load(join(out, "features"), features.STAGE)
    prepared = prepare.PreparedData.load(out)
    with cluster.connect():
        evaluation = evaluate.run(config, prepared, embedded, runs, join(out, config.name))
    cli.show(
        f"{config.split} pictures, in {evaluation.uri}",
        ["system", "mean cosine", "95 % interval", "pictures"],
        evaluate.summary(evaluation),
    )


if __name__ == "__main__":
    cli.main(job)
