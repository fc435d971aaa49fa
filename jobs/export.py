"""Export a run as plain files: a Hugging Face checkpoint of the merged tower, and the head."""

from img2prompt import cli, presets
from img2prompt.artifact import Artifact
from img2prompt.predict import export
from img2prompt.predict.choose import choose_predictor
from img2prompt.prepare import shard
from img2prompt.storage import join


def job() -> None:
    options = cli.parse(__doc__, presets.EXPORT)
    config, out = options.config, options.out
    predictor = choose_predictor(config.run, out)
    shards = Artifact.load(join(out, "shards"), shard.STAGE)
    made = export.run(config, predictor, shards, join(out, config.name))
    cli.show(f"{config.run} in {made.uri}", ["file"], [[name] for name in made.names()])


if __name__ == "__main__":
    cli.main(job)
