"""The whole chain: prepare, features, probe, fine-tune, evaluate, predict."""

from img2prompt import cli, presets


def job() -> None:
    options = cli.parse(__doc__, presets.CHAINS, default="demo")
    config, out = options.config, options.out

    from img2prompt import chain
    from img2prompt.distributed import cluster
    from img2prompt.predict import evaluate
    from img2prompt.prepare import run as prepare

    chain.check(config, out)
    with cluster.connect(dashboard=True, download=config.features.tower.download):
        result = chain.run(config, out)
    cli.show(f"data in {out}", ["", "count", "remark"], prepare.summary(result.prepared))
    if not config.predict.pictures:
        rows = chain.samples_summary(result, options.workspace.samples)
        cli.show(f"prompts in {result.predictions.uri}", ["prompt", "", "cosine"], rows)
    cli.show(
        f"scores on held-out {config.evaluate.split} pictures, in {result.evaluation.uri}",
        list(evaluate.SUMMARY),
        evaluate.summary(result.evaluation),
    )
    print(f"report of the scores: {result.evaluation.path(evaluate.REPORT)}")
    pictures = ("--pictures", "FOLDER", "--run", config.finetune.name)
    cli.show_next("prompts of other pictures", out, "predict", *pictures)


if __name__ == "__main__":
    cli.main(job)
