"""Score runs on held-out pictures, or by folds, beside the mean vector and nearest neighbours."""

from img2prompt import cli, presets


def job() -> None:
    options = cli.parse(__doc__, presets.EVALUATE)
    config, workspace = options.config, options.workspace
    folder = workspace.evaluation(config.name)
    for name in config.runs:
        workspace.check_predictor(name)
    embedded = workspace.open_features()

    from img2prompt.distributed.placement import connected
    from img2prompt.predict import evaluate, text_scores
    from img2prompt.predictors.build import choose_predictor
    from img2prompt.prepare.prepared_data import PreparedData

    predictors = [choose_predictor(name, workspace, config.neighbours) for name in config.runs]
    prepared = PreparedData.load(options.out)
    with connected(evaluate.needs_cluster(config, prepared.shards)):
        evaluation = evaluate.run(config, prepared, embedded, predictors, folder)
    cli.show(
        f"{config.scored} pictures, in {evaluation.uri}",
        list(evaluate.SUMMARY),
        evaluate.summary(evaluation),
    )
    if texts := text_scores.texts_summary(evaluation):
        cli.show(
            "readable prompts: cosine of the text",
            ["prompts", "to the vector", "to the true prompt", "95 % interval"],
            texts,
        )
    print(f"report of the scores: {evaluation.path(evaluate.REPORT)}")
    if config.runs:
        pictures = ("--pictures", "FOLDER", "--run", config.runs[-1])
        cli.show_next("prompts of other pictures", options.out, "predict", *pictures)


if __name__ == "__main__":
    cli.main(job)
