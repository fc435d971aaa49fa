"""Prepare pictures and prompts: index, clean, embed, group, and write training shards."""

from img2prompt import cli, presets, runtime
from img2prompt.stages import prepare


def job() -> None:
    options = cli.parse(__doc__, presets.PREPARE, default="demo")
    prepare.check(options.config, options.out)
    with runtime.connect():
        prepared = prepare.run(options.config, options.out)
    title = f"{options.config.name} in {options.out}"
    cli.show(title, ["", "count", "remark"], prepare.summary(prepared))


if __name__ == "__main__":
    cli.main(job)
