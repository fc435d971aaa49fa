"""Predict the prompts of a folder of pictures: vectors, submission.csv and readable prompts."""

from img2prompt import cli, presets, runtime
from img2prompt.artifact import Artifact
from img2prompt.stages import predict, prepare, train
from img2prompt.storage import join


def job() -> None:
    options = cli.parse(__doc__, presets.PREDICT)
    config, out = options.config, options.out
    trained = Artifact.load(join(out, "runs", config.run), train.STAGE)
    prepared = prepare.Prepared.load(out)
    predict.list_pictures(config.pictures)
    with runtime.connect():
        predictions = predict.run(config, trained, prepared, join(out, config.name))
    cli.show(
        f"{predictions.counts['pictures']} pictures predicted, in {predictions.uri}",
        ["picture", "nearest prompt", "cosine"],
        predict.summary(predictions),
    )
    if refused := predict.rejected_summary(predictions):
        title = f"{sum(predictions.counts['rejected'].values())} pictures rejected"
        cli.show(title, ["picture", "reason"], refused)


if __name__ == "__main__":
    cli.main(job)
