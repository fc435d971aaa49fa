"""The command line of all jobs: a preset, dotted options on top, one call, readable errors."""

import dataclasses
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from img2prompt.config.base import Config
from img2prompt.errors import UserError
from img2prompt.storage import absolute, read_bytes
from img2prompt.workspace import Workspace

C = TypeVar("C", bound=Config)
J = TypeVar("J", bound="Options[Any]")

LONGEST = 180
"""Characters of a table's cell; prompts may be pages long."""


@dataclass(frozen=True)
class Options(Generic[C]):
    """What a job runs and where."""

    config: Annotated[C, tyro.conf.arg(name="")]
    out: str = "out/demo"
    """Folder of everything that belongs together, local or a URI such as s3://bucket/run."""

    @property
    def workspace(self) -> Workspace:
        return Workspace(self.out)


@dataclass(frozen=True)
class TrainOptions(Options[C]):
    """A training run, which may be there already."""

    resume_anyway: bool = False
    """Let an unfinished run go on although its config was another: what differs is logged and kept
    with the run. Its model, batch size, data and base checkpoint must be the same."""


def parse(
    what: str,
    presets: Mapping[str, Callable[[], C]],
    default: str = "",
    arguments: list[str] | None = None,
    kind: type[J] = Options,
) -> J:
    """Read `[preset] [--out DIR] [--dotted.option value]` from the command line.

    `--config FILE` takes a complete JSON config in place of a preset. With a `default`, or where
    there is one preset only, its name may be left out.

    Raises:
        UserError: no such preset or file. For a bad option tyro says what is allowed and exits.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    default = next(iter(presets)) if len(presets) == 1 else default
    if not default and arguments in (["-h"], ["--help"]):
        print(f"{what}\n\n{_usage(presets, default)}")
        sys.exit(0)
    config = _start(presets, default, arguments)
    job_type: Any = kind[type(config)]  # type: ignore[index]
    job = tyro.cli(
        job_type,
        description=f"{what}\n\n{_usage(presets, default)}",
        args=arguments,
        default=kind(config),
        config=(tyro.conf.AvoidSubcommands,),
    )
    return dataclasses.replace(job, out=_absolute(job.out))


def _absolute(out: str) -> str:
    """The folder as workers see it, who run elsewhere.

    A submitted job runs in a copy of the user's folder, so there a relative one is a UserError.
    """
    submitted = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    if submitted and "://" not in out and not Path(out).is_absolute():
        raise UserError(
            f"--out is {out!r}, relative to a copy of your folder that goes with the cluster; give "
            "an absolute path that every node sees, or a URI such as s3://bucket/run"
        )
    return absolute(out)


def _start(presets: Mapping[str, Callable[[], C]], default: str, arguments: list[str]) -> C:
    """The config that the options change; its name is taken out of the arguments."""
    if "--config" in arguments:
        return _from_file(arguments, type(next(iter(presets.values()))()))
    named = bool(arguments) and not arguments[0].startswith("-")
    name = arguments.pop(0) if named else default
    if name not in presets:
        wrong = f"{name!r} is no preset" if named else "no preset is named"
        raise UserError(f"{wrong}\n{_usage(presets, default)}")
    return presets[name]()


def _usage(presets: Mapping[str, Callable[[], Config]], default: str) -> str:
    """How to start a job, and its presets with the first line of what each says of itself."""
    script = Path(sys.argv[0]).name
    lines = [f"usage: {script} [preset] [options], or {script} --config FILE [options]"]
    for name, make in presets.items():
        mark = " (taken when none is named)" if name == default else ""
        lines.append(f"  {name}{mark}: {(make.__doc__ or '').split(chr(10))[0]}")
    return "\n".join(lines)


def _from_file(arguments: list[str], kind: type[C]) -> C:
    """Take `--config FILE` out of the arguments and read the file."""
    place = arguments.index("--config")
    if place + 1 == len(arguments):
        raise UserError("--config needs the path of a JSON file that a run has left")
    path = arguments[place + 1]
    del arguments[place : place + 2]
    try:
        return kind.from_json(read_bytes(path).decode(), where=path)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path} cannot be read: {error}") from None


def main(job: Callable[[], None]) -> None:
    """Run a job; what the user can mend is told without a traceback, and the exit status is 2."""
    try:
        job()
    except UserError as error:
        told = Text.assemble(("error: ", "bold red"), str(error))
        Console(stderr=True, highlight=False).print(told, soft_wrap=True)
        sys.exit(2)


def show(title: str, columns: list[str], rows: list[list[object]]) -> None:
    """Print a table, numbers to the right; brackets are text, as prompts are full of them."""
    table = Table()
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    console = Console(width=None if sys.stdout.isatty() else 110, highlight=False)
    console.print(Text(f"\n{title}", style="bold"), soft_wrap=True)
    console.print(table)


def _cell(value: object) -> Text:
    if isinstance(value, float):
        return Text(f"{value:.4f}")
    told = f"{value:,}" if isinstance(value, int) else str(value)
    return Text(told if len(told) <= LONGEST else f"{told[: LONGEST - 1]}…")
