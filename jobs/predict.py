"""Predict the prompts of a folder of pictures: vectors, readable prompts, submission.csv."""

from img2prompt import cli, presets


def job() -> None:
    options = cli.parse(__doc__, presets.PREDICT)
    config, workspace = options.config, options.workspace
    folder = workspace.predictions(config.name)
    workspace.check_predictor(config.run)

    from img2prompt.distributed.placement import connected
    from img2prompt.predict import outputs, predict
    from img2prompt.predict.pictures import list_pictures
    from img2prompt.predictors.build import choose_predictor
    from img2prompt.prepare.prepared_data import PreparedData

    predictor = choose_predictor(config.run, workspace, config.neighbours)
    prepared = PreparedData.load(options.out)
    pictures = list_pictures(config.pictures)
    with connected(predict.needs_cluster(len(pictures.uris))):
        predictions = predict.run(config, predictor, prepared, folder)
    cli.show(
        f"{predictions.counts['pictures']} pictures predicted, in {predictions.uri}",
        ["picture", "prompt", "cosine"],
        predict.summary(predictions),
    )
    if reason := predictions.counts["submission"]:
        print(f"{outputs.SUBMISSION} is not written: {reason}")
    if rejected := predict.rejected_summary(predictions):
        title = f"{sum(predictions.counts['rejected'].values())} files rejected"
        cli.show(title, ["picture", "reason"], rejected)


if __name__ == "__main__":
    cli.main(job)
