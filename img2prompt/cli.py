"""The command line of all jobs: a preset, dotted options that change it, and readable errors.

Jobs import torch and Ray inside `job()`, after their options and inputs are checked: `--help` and
a misspelt option then take half a second instead of ten.
"""

import dataclasses
import os
import shlex
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
from img2prompt.signals import Stopped, StopSignals
from img2prompt.storage import absolute, read_bytes
from img2prompt.workspace import Workspace

C = TypeVar("C", bound=Config)
J = TypeVar("J", bound="Options[Any]")

MAX_CELL = 180
"""Characters of a table's cell that are shown; prompts may be pages long."""


@dataclass(frozen=True)
class Options(Generic[C]):
    """Options of a job: its config and its folder."""

    config: Annotated[C, tyro.conf.arg(name="")]
    out: str = "out/demo"
    """Folder of the data set, its runs and results; local or a URI such as s3://bucket/run."""

    @property
    def workspace(self) -> Workspace:
        return Workspace(self.out)


@dataclass(frozen=True)
class TrainOptions(Options[C]):
    """Options of a training job."""

    resume_anyway: bool = False
    """Resume an unfinished run with another config. Differences are logged and saved with the run.
    Its model, batch size, recipe, data and base checkpoint must be the same."""


def parse(
    description: str,
    presets: Mapping[str, Callable[[], C]],
    default: str = "",
    arguments: list[str] | None = None,
    kind: type[J] = Options,
) -> J:
    """Read `[preset] [--out DIR] [--dotted.option value]` from the command line.

    `--config FILE` takes a complete JSON config in place of a preset. The preset's name may be
    omitted if there is a `default` or only one preset.

    Raises:
        UserError: the preset or file does not exist.
        SystemExit: a bad option, for which tyro prints the allowed values; or `--help`.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    default = next(iter(presets)) if len(presets) == 1 else default
    if not default and arguments in (["-h"], ["--help"]):
        print(f"{description}\n\n{_usage(presets, default)}")
        sys.exit(0)
    config = _base_config(presets, default, arguments)
    options_type: Any = kind[type(config)]  # type: ignore[index]
    options = tyro.cli(
        options_type,
        description=f"{description}\n\n{_usage(presets, default)}",
        args=arguments,
        default=kind(config),
        config=(tyro.conf.AvoidSubcommands,),
    )
    return dataclasses.replace(options, out=_absolute(options.out))


def _absolute(out: str) -> str:
    """Return the folder as an absolute path, for workers that run in other folders.

    Raises:
        UserError: the path is relative in a submitted job, which runs in a copy of the user's
            folder.
    """
    submitted = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    if submitted and "://" not in out and not Path(out).is_absolute():
        raise UserError(
            f"--out is {out!r}, relative to a copy of your folder that the cluster deletes; "
            "give an absolute path that every node sees, or a URI such as s3://bucket/run"
        )
    return absolute(out)


def _base_config(presets: Mapping[str, Callable[[], C]], default: str, arguments: list[str]) -> C:
    """Return the config that options change; remove its name from the arguments."""
    if "--config" in arguments:
        return _from_file(arguments, type(next(iter(presets.values()))()))
    named = bool(arguments) and not arguments[0].startswith("-")
    name = arguments.pop(0) if named else default
    if name not in presets:
        problem = f"{name!r} is no preset" if named else "no preset is named"
        raise UserError(f"{problem}\n{_usage(presets, default)}")
    return presets[name]()


def _usage(presets: Mapping[str, Callable[[], Config]], default: str) -> str:
    """Describe how to start a job, and its presets with the first line of their docstrings."""
    script = Path(sys.argv[0]).name
    lines = [f"usage: {script} [preset] [options], or {script} --config FILE [options]"]
    for name, make in presets.items():
        mark = " (default)" if name == default else ""
        lines.append(f"  {name}{mark}: {(make.__doc__ or '').split(chr(10))[0]}")
    return "\n".join(lines)


def _from_file(arguments: list[str], kind: type[C]) -> C:
    """Read the file of `--config FILE`; remove both from the arguments."""
    position = arguments.index("--config")
    if position + 1 == len(arguments):
        raise UserError("--config needs the path of a JSON file, such as a run's config.json")
    path = arguments[position + 1]
    del arguments[position : position + 2]
    try:
        return kind.from_json(read_bytes(path).decode(), where=path)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path} cannot be read: {error}") from None


def main(job: Callable[[], None]) -> None:
    """Run a job; print a UserError, or what a signal stopped, without a traceback.

    Raises:
        SystemExit: 2 after a UserError; 130 after Ctrl-C, and 143 after SIGTERM.
    """
    try:
        with StopSignals():
            job()
    except UserError as error:
        _print_end("error: ", str(error))
        sys.exit(2)
    except Stopped as stopped:
        _print_end(f"stopped by {stopped.name}: ", stopped.saved)
        sys.exit(stopped.exit_code)


def _print_end(label: str, message: str) -> None:
    text = Text.assemble((label, "bold red"), message)
    Console(stderr=True, highlight=False).print(text, soft_wrap=True)


def show(title: str, columns: list[str], rows: list[list[object]]) -> None:
    """Print a table with all columns but the first right-aligned.

    Brackets are printed as text, not read as rich's markup: prompts are full of them.
    """
    table = Table()
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    console = Console(width=None if sys.stdout.isatty() else 110, highlight=False)
    console.print(Text(f"\n{title}", style="bold"), soft_wrap=True)
    console.print(table)


def show_next(purpose: str, out: str, script: str, *arguments: str) -> None:
    """Print the job that usually follows, as a command for a shell."""
    print(f"next, {purpose}: python jobs/{script}.py {shlex.join([*arguments, '--out', out])}")


def _cell(value: object) -> Text:
    if isinstance(value, float):
        return Text(f"{value:.4f}")
    text = f"{value:,}" if isinstance(value, int) else str(value)
    return Text(text if len(text) <= MAX_CELL else f"{text[: MAX_CELL - 1]}…")
