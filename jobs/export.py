"""Export a run as plain files: a Hugging Face checkpoint of the merged tower, and the head."""

from img2prompt import cli, presets
from img2prompt.artifact import Artifact
from img2prompt.stages import export, shard, train
from img2prompt.storage import join


def job() -> None:
    options = cli.parse(__doc__, presets.EXPORT)
    config, out = options.config, options.out
    trained = Artifact.load(join(out, "runs", config.run), train.STAGE)
    shards = Artifact.load(join(out, "shards"), shard.STAGE)
    made = export.run(config, trained, shards, join(out, config.name))
    cli.show(f"{config.run} in {made.uri}", ["file"], [[name] for name in made.names()])


if __name__ == "__main__":
    cli.main(job)
