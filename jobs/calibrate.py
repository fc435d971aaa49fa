"""Fit how confident a predictor is of each picture. The result predicts like a run."""

from img2prompt import cli, presets


def job() -> None:
    options = cli.parse(__doc__, presets.CALIBRATE)
    config, workspace = options.config, options.workspace
    folder = workspace.run(config.name)
    workspace.check_predictor(config.run)
    embedded = workspace.open_features()

    from img2prompt.distributed.placement import connected
    from img2prompt.predict import calibrate
    from img2prompt.predictors.build import choose_predictor
    from img2prompt.prepare.prepared_data import PreparedData

    predictor = choose_predictor(config.run, workspace, config.neighbours)
    prepared = PreparedData.load(options.out)
    with connected(calibrate.needs_cluster(prepared.shards)):
        calibration = calibrate.run(config, prepared, embedded, predictor, folder)
    cli.show(
        f"validation pictures by confidence, fitted on other folds, in {calibration.uri}",
        ["confidence", "mean", "mean cosine", "pictures"],
        calibrate.summary(calibration),
    )
    counts = calibration.counts
    print(
        f"rank correlation with the cosine: {counts['rank_correlation']:.3f}; of the nearest "
        f"prompt's cosine: {counts['rank_correlation_nearest']:.3f}"
    )


if __name__ == "__main__":
    cli.main(job)
