"""Export a run as plain files: a Hugging Face checkpoint of the merged tower, and the head."""

from img2prompt import cli, presets


def job() -> None:
    options = cli.parse(__doc__, presets.EXPORT)
    config, workspace = options.config, options.workspace
    folder = workspace.export(config.name)
    run, shards = workspace.open_run(config.run), workspace.open_shards()

    from img2prompt.predict import export
    from img2prompt.predictors.trained import TrainedRun

    exported = export.run(config, TrainedRun(run, name=config.run), shards, folder)
    cli.show(f"{config.run} in {exported.uri}", ["file"], [[name] for name in exported.names()])


if __name__ == "__main__":
    cli.main(job)
