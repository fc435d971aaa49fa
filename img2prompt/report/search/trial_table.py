"""Table of all trials: cells carry the value to sort by and the text to show."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from img2prompt.report.search.surface import is_number
from img2prompt.report.search.trial_rows import TrialRow, flop_spent
from img2prompt.report.search.wording import level


@dataclass(frozen=True)
class Cell:
    value: Any
    """What its column is sorted by; "": nothing, sorted last."""
    text: str


@dataclass(frozen=True)
class Column:
    name: str
    is_number: bool


@dataclass(frozen=True)
class Line:
    end: str
    """One of "finished", "stopped" and "failed"."""
    cells: list[Cell]


@dataclass(frozen=True)
class Table:
    columns: list[Column]
    rows: list[Line]


def table(rows: Sequence[TrialRow]) -> Table:
    """Return the table of all trials in the order of the rows, failed trials with their reasons."""
    options = list(dict.fromkeys(name for row in rows for name in row["setting"]))
    lines = [_cells(number, row, options) for number, row in enumerate(rows, 1)]
    columns = [Column(name, _is_numeric([line[name] for line in lines])) for name in lines[0]]
    body = [Line(row["end"], [*line.values()]) for row, line in zip(rows, lines, strict=True)]
    return Table(columns, body)


def _is_numeric(cells: Sequence[Cell]) -> bool:
    """Return whether a column holds numbers; empty cells do not count."""
    values = [cell.value for cell in cells if cell.value != ""]
    return bool(values) and all(map(is_number, values))


def _cells(number: int, row: TrialRow, options: Sequence[str]) -> dict[str, Cell]:
    setting = {name: row["setting"].get(name, "") for name in options}
    best = "" if row["best"] is None else row["best"]
    layers = [len(row["plan"][kind]) for kind in ("frozen", "lora", "trained")]
    return {
        "#": Cell(number, str(number)),
        "best cosine": Cell(best, "" if best == "" else f"{best:.4f}"),
        **{name: Cell(value, level(value)) for name, value in setting.items()},
        "seed": Cell(row["seed"], str(row["seed"])),
        "frozen / LoRA / trained": Cell(layers[2] * 1000 + layers[1], " / ".join(map(str, layers))),
        "share of rows": Cell(row["share"], f"{row['share']:g}"),
        "epochs": Cell(len(row["epochs"]), str(len(row["epochs"]))),
        "learned, M": Cell(row["learned"], f"{row['learned'] / 1e6:,.2f}"),
        "GFLOP per picture": Cell(row["flop"], f"{row['flop'] / 1e9:,.4g}"),
        "GB per worker": Cell(row["memory"], f"{row['memory'] / 1e9:,.2f}"),
        "pictures": Cell(row["rows"], f"{row['rows']:,}"),
        "PFLOP spent": Cell(flop_spent(row), f"{flop_spent(row) / 1e15:,.4g}"),
        "worker seconds": Cell(row["seconds"], f"{row['seconds']:,.0f}"),
        "end": Cell(row["end"], row["end"]),
        "reason": Cell(row["reason"], row["reason"]),
    }
