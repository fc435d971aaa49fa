"""The table of all trials on the report's page; cells carry the value they are sorted by."""

from collections.abc import Sequence
from html import escape
from typing import Any

from img2prompt.report.search.charts import level
from img2prompt.report.search.surface import is_number
from img2prompt.report.search.trial_rows import TrialRow, flop_spent

_Cell = tuple[Any, str]
"""The value to sort by and the text shown."""


def table(rows: Sequence[TrialRow]) -> str:
    """HTML of all trials, in the rows' order, failed ones with their reasons."""
    options = list(dict.fromkeys(name for row in rows for name in row["setting"]))
    lines = [_cells(number, row, options) for number, row in enumerate(rows, 1)]
    wide = {
        name: all(line[name][0] == "" or is_number(line[name][0]) for line in lines)
        for name in lines[0]
    }
    wide["reason"] = False
    head = "".join(
        f'<th scope="col"{"" if wide[name] else _TEXT}><button>{escape(name)}</button></th>'
        for name in lines[0]
    )
    body = "".join(
        f'<tr class="{escape(row["end"])}">{_line(line, wide)}</tr>'
        for row, line in zip(rows, lines, strict=True)
    )
    inner = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="table"><table>{inner}</table></div>'


_TEXT = ' class="text"'


def _line(line: dict[str, _Cell], numbers: dict[str, bool]) -> str:
    found = []
    for name, (value, text) in line.items():
        look = ' class="text reason"' if name == "reason" else "" if numbers[name] else _TEXT
        found.append(f'<td{look} data-value="{escape(str(value))}">{escape(text)}</td>')
    return "".join(found)


def _cells(number: int, row: TrialRow, options: Sequence[str]) -> dict[str, _Cell]:
    setting = {name: row["setting"].get(name, "") for name in options}
    best = "" if row["best"] is None else row["best"]
    layers = [len(row["plan"][kind]) for kind in ("frozen", "lora", "trained")]
    return {
        "#": (number, str(number)),
        "best cosine": (best, "" if best == "" else f"{best:.4f}"),
        **{name: (value, level(value)) for name, value in setting.items()},
        "seed": (row["seed"], str(row["seed"])),
        "frozen / LoRA / trained": (layers[2] * 1000 + layers[1], " / ".join(map(str, layers))),
        "share of rows": (row["share"], f"{row['share']:g}"),
        "epochs": (len(row["epochs"]), str(len(row["epochs"]))),
        "learned, M": (row["learned"], f"{row['learned'] / 1e6:,.2f}"),
        "GFLOP a picture": (row["flop"], f"{row['flop'] / 1e9:,.4g}"),
        "GB a worker": (row["memory"], f"{row['memory'] / 1e9:,.2f}"),
        "pictures": (row["rows"], f"{row['rows']:,}"),
        "PFLOP spent": (flop_spent(row), f"{flop_spent(row) / 1e15:,.4g}"),
        "worker seconds": (row["seconds"], f"{row['seconds']:,.0f}"),
        "end": (row["end"], row["end"]),
        "reason": (row["reason"], row["reason"]),
    }
