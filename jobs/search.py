"""Search LoRA, unfreezing and head width with real training trials; writes the best config."""

from img2prompt import cli, presets


def job() -> None:
    options = cli.parse(__doc__, presets.SEARCH, default="demo")
    config, workspace = options.config, options.workspace
    workspace.search(config.name)
    shards, embedded = workspace.open_shards(), workspace.open_features()
    targets = workspace.open_targets() if config.base.recipe.flip_guard else None

    from img2prompt.distributed import cluster
    from img2prompt.search import run as search
    from img2prompt.search.results import BEST, REPORT, summary
    from img2prompt.train.job import TrainInputs

    with cluster.connect(dashboard=True, download=config.base.tower.download):
        inputs = TrainInputs(shards, embedded, targets=targets)
        result = search.run(config, inputs, options.out)
    cli.show(f"trials in {result.uri}", ["trial", "val cosine", "epochs", ""], summary(result))
    print(f"report of the trials: {result.path(REPORT)}")
    all_rows = " --optim.share 1" if config.base.optim.share < 1 else ""
    best = f"--config {result.path(BEST)}{all_rows} --out {options.out}"
    print(f"train the best: python jobs/train.py {best}")


if __name__ == "__main__":
    cli.main(job)
