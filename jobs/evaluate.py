"""Score runs on held-out pictures, beside the mean vector and nearest neighbours."""

from img2prompt import cli, presets, runtime
from img2prompt.artifact import Artifact
from img2prompt.stages import evaluate, features, prepare, train
from img2prompt.storage import join


def job() -> None:
    options = cli.parse(__doc__, presets.EVALUATE)
    config, out = options.config, options.out
    runs = {n: Artifact.load(join(out, "runs", n), train.STAGE) for n in config.runs}
    embedded = Artifact.load(join(out, "features"), features.STAGE)
    prepared = prepare.Prepared.load(out)
    with runtime.connect():
        evaluation = evaluate.run(config, prepared, embedded, runs, join(out, config.name))
    cli.show(
        f"{config.split} pictures, in {evaluation.uri}",
        ["system", "mean cosine", "95 % interval", "pictures"],
        evaluate.summary(evaluation),
    )


if __name__ == "__main__":
    cli.main(job)
