"""Run the frozen tower once over all shards and keep its features."""

from img2prompt import cli, presets


def job() -> None:
    options = cli.parse(__doc__, presets.FEATURES, default="demo")
    config, workspace = options.config, options.workspace
    shards = workspace.open_shards()

    from img2prompt.distributed import cluster
    from img2prompt.prepare import features

    with cluster.connect(download=config.tower.download):
        embedded = features.run(config, shards, workspace.features)
    cli.show(f"features in {embedded.uri}", ["", "count"], list(map(list, embedded.counts.items())))
    probes = ", ".join(name for name in presets.TRAIN if name.startswith("probe"))
    cli.show_next(f"with a preset of {probes}", options.out, "train", "PRESET")


if __name__ == "__main__":
    cli.main(job)
