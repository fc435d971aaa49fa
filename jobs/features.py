"""Run the frozen tower once over all shards and keep its features."""

from img2prompt import cli, presets, runtime
from img2prompt.artifact import Artifact
from img2prompt.stages import features, shard
from img2prompt.storage import join


def job() -> None:
    options = cli.parse(__doc__, presets.FEATURES, default="demo")
    with runtime.connect(download=options.config.tower.download):
        shards = Artifact.load(join(options.out, "shards"), shard.STAGE)
        made = features.run(options.config, shards, join(options.out, "features"))
    cli.show(f"features in {made.uri}", ["", "count"], [["pictures", made.counts["rows"]]])


if __name__ == "__main__":
    cli.main(job)
