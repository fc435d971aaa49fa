"""Prepare pictures and prompts: index, clean, embed, group, and write training shards."""

from img2prompt import cli, presets


def job() -> None:
    options = cli.parse(__doc__, presets.PREPARE, default="demo")
    config, out = options.config, options.out

    from img2prompt.distributed import cluster
    from img2prompt.prepare import run as prepare

    prepare.check(config, out)
    with cluster.connect():
        prepared = prepare.run(config, out)
    cli.show(f"{config.name} in {out}", ["", "count", "remark"], prepare.summary(prepared))
    cli.show_next(f"with a preset of {', '.join(presets.FEATURES)}", out, "features", "PRESET")


if __name__ == "__main__":
    cli.main(job)
