"""The command line of all jobs: a preset, dotted options on top, one call, readable errors."""

import functools
import operator
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

import tyro
from rich.console import Console
from rich.table import Table

from img2prompt.artifact import read_bytes
from img2prompt.config import Config
from img2prompt.errors import UserError

C = TypeVar("C", bound=Config)


@dataclass(frozen=True)
class Job(Generic[C]):
    """What a job runs and where."""

    config: Annotated[C, tyro.conf.arg(name="")]
    out: str = "out/demo"
    """Folder of everything that belongs together, local or a URI such as s3://bucket/run."""


def parse(
    what: str,
    presets: Mapping[str, Callable[[], C]],
    default: str = "",
    arguments: list[str] | None = None,
) -> Job[C]:
    """Read `[preset] [--out DIR] [--dotted.option value]` from the command line.

    `--config FILE` takes a complete JSON config in place of a preset. With a `default`, or where
    there is one preset only, its name may be left out.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    kind = type(next(iter(presets.values()))())
    job_type: Any = Job[kind]  # type: ignore[valid-type]
    read = functools.partial(
        tyro.cli, description=what, args=arguments, config=(tyro.conf.AvoidSubcommands,)
    )
    if "--config" in arguments:
        return read(job_type, default=_from_file(arguments, kind))
    if len(presets) == 1:
        return read(job_type, default=Job(next(iter(presets.values()))()))
    if default and not {"-h", "--help", *presets} & set(arguments):
        arguments.insert(0, default)
    choices = tuple(_choice(job_type, *named) for named in presets.items())
    return read(functools.reduce(operator.or_, choices))


def _choice(job_type: Any, name: str, make: Callable[[], Config]) -> Any:
    """A preset as a subcommand that begins with its values."""
    what = (make.__doc__ or name).split("\n")[0]
    return Annotated[
        job_type, tyro.conf.subcommand(name=name, default=Job(make()), description=what)
    ]


def _from_file(arguments: list[str], kind: type[C]) -> Job[C]:
    """Take `--config FILE` out of the arguments and read the file."""
    place = arguments.index("--config")
    if place + 1 == len(arguments):
        raise UserError("--config needs the path of a JSON file that a run has left")
    path = arguments[place + 1]
    del arguments[place : place + 2]
    try:
        return Job(kind.from_json(read_bytes(path).decode(), where=path))
    except FileNotFoundError:
        raise UserError(f"--config {path}: there is no such file") from None


def main(job: Callable[[], None]) -> None:
    """Run a job; what the user can mend is told without a traceback, and the exit status is 2."""
    try:
        job()
    except UserError as error:
        Console(stderr=True, highlight=False).print(f"[bold red]error:[/] {error}", soft_wrap=True)
        sys.exit(2)


def show(title: str, columns: list[str], rows: list[list[object]]) -> None:
    """Print a table, numbers to the right."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    Console(width=None if sys.stdout.isatty() else 110).print(table)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
