"""Search LoRA, unfreezing and head width with real training trials; writes the best config."""

from img2prompt import cli, presets
from img2prompt.artifact import Artifact
from img2prompt.distributed import cluster
from img2prompt.prepare import features, shard
from img2prompt.search import run as search
from img2prompt.search.results import BEST, REPORT, summary
from img2prompt.storage import join
from img2prompt.train.job import TrainInputs


def job() -> None:
    options = cli.parse(__doc__, presets.SEARCH, default="demo")
    config, out = options.config, options.out
    shards = Artifact.load(join(out, "shards"), shard.STAGE)
    embedded = Artifact.load(join(out, "features"), features.STAGE)
    with cluster.connect(dashboard=True, download=config.base.tower.download):
        found = search.run(config, TrainInputs(shards, embedded), out)
    cli.show(f"trials in {found.uri}", ["trial", "val cosine", "epochs", ""], summary(found))
    print(f"what the trials tell: {found.path(REPORT)}")
    print(f"train the best: python jobs/train.py --config {found.path(BEST)} --out {out}")


if __name__ == "__main__":
    cli.main(job)
