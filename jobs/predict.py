"""Predict the prompts of a folder of pictures: vectors, submission.csv and readable prompts."""

from img2prompt import cli, presets
from img2prompt.distributed import cluster
from img2prompt.predict import predict
from img2prompt.predict.choose import choose_predictor
from img2prompt.prepare import run as prepare
from img2prompt.storage import join


def job() -> None:
    options = cli.parse(__doc__, presets.PREDICT)
    config, out = options.config, options.out
    predictor = choose_predictor(config.run, out, config.neighbours)
    prepared = prepare.PreparedData.load(out)
    predict.list_pictures(config.pictures)
    with cluster.connect():
        predictions = predict.run(config, predictor, prepared, join(out, config.name))
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
