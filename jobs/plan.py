"""Plan a chain: time, GPU-hours, money, storage and memory for numbers of pictures.

Rates come from what earlier stages under --out measured, and are assumed where there is nothing.
"""

from img2prompt import cli, presets


def job() -> None:
    options = cli.parse(__doc__, presets.PLANS, default="l14-336")

    from img2prompt.planning import run as planning

    for title, columns, rows in planning.tables(options.config, options.out):
        cli.show(title, columns, rows)


if __name__ == "__main__":
    cli.main(job)
