"""CSV files for people, who open them in spreadsheets."""

import csv
import io
from collections.abc import Iterable, Sequence

_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # noqa: RUF001


def sheet(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """Return a CSV file (UTF-8) whose texts no spreadsheet runs as formulas.

    A text that could be a formula gets an apostrophe before it, as OWASP recommends against CSV
    injection (owasp.org/www-community/attacks/CSV_Injection). Numbers stay as they are.
    """
    sink = io.StringIO()
    # Quoted texts, because a lone carriage return in a bare one would end the row.
    writer = csv.writer(sink, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow(columns)
    writer.writerows([[_cell(value) for value in row] for row in rows])
    return sink.getvalue().encode()


def _cell(value: object) -> object:
    if isinstance(value, str) and value.startswith(_FORMULA_STARTS):
        return f"'{value}"
    return value
