"""Make pictures for a list of prompts with a diffusers pipeline, as a source for prepare."""

from img2prompt import cli, presets


def job() -> None:
    options = cli.parse(__doc__, presets.GENERATE, default="competition")
    config, workspace = options.config, options.workspace
    folder = workspace.generated(config.name)

    from img2prompt.distributed import cluster
    from img2prompt.generate import run as generate
    from img2prompt.generate.sheet import SHEET
    from img2prompt.workspace import GeneratedFolder

    generate.check(config)
    with cluster.connect(download=config.download):
        generated = generate.run(config, folder)
    rows = generate.summary(generated)
    cli.show(f"pictures in {generated.uri}", ["", "count"], rows)
    if SHEET in generated.files:
        print(f"contact sheet: {generated.path(SHEET)}")
    pictures = GeneratedFolder(generated.uri).pictures
    print(f"use them: python jobs/prepare.py pictures --sources.0.path {pictures}")


if __name__ == "__main__":
    cli.main(job)
