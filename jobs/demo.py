"""The whole chain: prepare, features, probe, fine-tune, evaluate, predict."""

from img2prompt import chain, cli, presets
from img2prompt.distributed import cluster
from img2prompt.predict import evaluate
from img2prompt.prepare import run as prepare
from img2prompt.storage import join


def job() -> None:
    options = cli.parse(__doc__, presets.CHAINS, default="demo")
    config, out = options.config, options.out
    chain.check(config, out)
    with cluster.connect(dashboard=True, download=config.features.tower.download):
        made = chain.run(config, out)
    cli.show(f"data in {out}", ["", "count", "remark"], prepare.summary(made.prepared))
    if not config.predict.pictures:
        rows = chain.samples_summary(made, join(out, chain.SAMPLES))
        cli.show(f"prompts in {made.predictions.uri}", ["prompt", "", "cosine"], rows)
    cli.show(
        f"scores on held-out {config.evaluate.split} pictures, in {made.evaluation.uri}",
        ["system", "mean cosine", "95 % interval", "pictures"],
        evaluate.summary(made.evaluation),
    )


if __name__ == "__main__":
    cli.main(job)
