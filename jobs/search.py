"""Search LoRA, unfreezing and head width with real training trials; writes the best config."""

from img2prompt import cli, presets, runtime
from img2prompt.artifact import Artifact
from img2prompt.stages import features, search, shard, train
from img2prompt.storage import join


def job() -> None:
    options = cli.parse(__doc__, presets.SEARCH, default="demo")
    config, out = options.config, options.out
    shards = Artifact.load(join(out, "shards"), shard.STAGE)
    embedded = Artifact.load(join(out, "features"), features.STAGE)
    with runtime.connect(dashboard=True, download=config.base.tower.download):
        found = search.run(config, train.Inputs(shards, embedded), out)
    cli.show(f"trials in {found.uri}", ["trial", "val cosine", "epochs", ""], search.summary(found))
    print(f"what the trials tell: {found.path(search.REPORT)}")
    print(f"train the best: python jobs/train.py --config {found.path(search.BEST)} --out {out}")


if __name__ == "__main__":
    cli.main(job)
