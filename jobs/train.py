"""Train a probe on cached features, or fine-tune the tower from shards."""

from img2prompt import cli, presets


def job() -> None:
    options = cli.parse(__doc__, presets.TRAIN, kind=cli.TrainOptions)
    config, workspace = options.config, options.workspace
    folder = workspace.run(config.name)
    shards = workspace.open_shards()
    features = workspace.open_features() if config.plan.frozen_tower else None
    groups = workspace.open_groups() if config.optim.solver == "ridge" else None
    targets = workspace.open_targets() if config.recipe.flip_guard else None
    start = workspace.open_run(config.start_from) if config.start_from else None

    from img2prompt.distributed.placement import connected
    from img2prompt.train import run as train
    from img2prompt.train.job import TrainInputs

    inputs = TrainInputs(shards, features, start, groups, targets)
    needed = train.needs_cluster(config, inputs)
    with connected(needed, dashboard=True, download=config.tower.download):
        run = train.run(config, inputs, folder, resume_anyway=options.resume_anyway)
    cli.show(f"{config.name} in {run.uri}", ["", "value"], [[k, v] for k, v in run.counts.items()])
    cli.show_next("its scores", options.out, "evaluate", "--runs", config.name)


if __name__ == "__main__":
    cli.main(job)
