"""Average finished runs: a fine-tune with its base, or a soup of runs. The result is a run too."""

from img2prompt import cli, presets


def job() -> None:
    options = cli.parse(__doc__, presets.AVERAGE)
    config, workspace = options.config, options.workspace
    folder = workspace.run(config.name)
    runs = {name: workspace.open_run(name) for name in config.runs}
    shards = workspace.open_shards()

    from img2prompt.train import average
    from img2prompt.train.job import TrainInputs

    first = average.MemberRun(config.runs[0], runs[config.runs[0]]).config
    features = workspace.open_features() if first.plan.frozen_tower else None
    interpolates = config.how == "wise-ft" and first.start_from != ""
    start = workspace.open_run(first.start_from) if interpolates else None
    averaged = average.run(config, runs, TrainInputs(shards, features, start), folder)
    rows = average.summary(averaged)
    cli.show(f"validation pictures, in {averaged.uri}", list(average.SUMMARY), rows)
    cli.show_next("its scores", options.out, "evaluate", "--runs", config.name)


if __name__ == "__main__":
    cli.main(job)
