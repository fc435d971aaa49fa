"""Train a probe on cached features, or fine-tune the tower from shards."""

from img2prompt import cli, presets
from img2prompt.artifact import Artifact
from img2prompt.distributed import cluster
from img2prompt.prepare import features, shard
from img2prompt.storage import join
from img2prompt.train import preflight
from img2prompt.train import run as train
from img2prompt.train.job import TrainInputs


def job() -> None:
    options = cli.parse(__doc__, presets.TRAIN, kind=cli.TrainOptions)
    config, out = options.config, options.out
    inputs = TrainInputs(
        shards=Artifact.load(join(out, "shards"), shard.STAGE),
        features=Artifact.load(join(out, "features"), features.STAGE)
        if config.plan.frozen_tower
        else None,
        start=Artifact.load(join(out, "runs", config.start_from), preflight.STAGE)
        if config.start_from
        else None,
    )
    with cluster.connect(dashboard=True, download=config.tower.download):
        folder = join(out, "runs", config.name)
        run = train.run(config, inputs, folder, resume_anyway=options.resume_anyway)
    cli.show(f"{config.name} in {run.uri}", ["", "value"], [[k, v] for k, v in run.counts.items()])


if __name__ == "__main__":
    cli.main(job)
