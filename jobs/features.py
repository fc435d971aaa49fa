"""Run the frozen tower once over all shards and keep its features."""

from img2prompt import cli, presets
from img2prompt.artifact import Artifact
from img2prompt.distributed import cluster
from img2prompt.prepare import features, shard
from img2prompt.storage import join


def job() -> None:
    options = cli.parse(__doc__, presets.FEATURES, default="demo")
    shards = Artifact.load(join(options.out, "shards"), shard.STAGE)
    with cluster.connect(download=options.config.tower.download):
        made = features.run(options.config, shards, join(options.out, "features"))
    cli.show(f"features in {made.uri}", ["", "count"], list(map(list, made.counts.items())))


if __name__ == "__main__":
    cli.main(job)
