"""Blend predictors: fit their weights on validation pictures. The result predicts like a run."""

from img2prompt import cli, presets


def job() -> None:
    options = cli.parse(__doc__, presets.BLEND)
    config, workspace = options.config, options.workspace
    folder = workspace.run(config.name)
    for name in config.runs:
        workspace.check_predictor(name)
    embedded = workspace.open_features()

    from img2prompt.distributed.placement import connected
    from img2prompt.predict import blend
    from img2prompt.predictors.build import choose_predictor
    from img2prompt.prepare.prepared_data import PreparedData

    members = [choose_predictor(name, workspace, config.neighbours) for name in config.runs]
    prepared = PreparedData.load(options.out)
    with connected(blend.needs_cluster(prepared.shards)):
        blended = blend.run(config, prepared, embedded, members, folder)
    cli.show(
        f"validation pictures, weights fitted on other folds, in {blended.uri}",
        ["predictor", "weight", "mean cosine", "gain in the blend"],
        blend.summary(blended),
    )


if __name__ == "__main__":
    cli.main(job)
