"""Prepare pictures and prompts: index, clean, embed, group, and write training shards."""

from img2prompt import cli, presets
from img2prompt.distributed import cluster
from img2prompt.prepare import run as prepare


def job() -> None:
    options = cli.parse(__doc__, presets.PREPARE, default="demo")
    prepare.check(options.config, options.out)
    with cluster.connect():
        prepared = prepare.run(options.config, options.out)
    title = f"{options.config.name} in {options.out}"
    cli.show(title, ["", "count", "remark"], prepare.summary(prepared))


if __name__ == "__main__":
    cli.main(job)
