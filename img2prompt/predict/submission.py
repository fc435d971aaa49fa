"""Kaggle's submission file: a line `<imgId>_<eId>,<val>` for each of a picture's 384 numbers.

Header `imgId_eId,val`; pictures in ascending order of id, numbers in order. Values are written with
the fewest digits that give the same float32 back. 16,000 pictures make 6.1 million lines, so whole
columns are formatted and parsed at once.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from img2prompt.data.vectors import DIMENSIONS
from img2prompt.errors import UserError
from img2prompt.storage import exists, read_bytes, write_bytes

HEADER = "imgId_eId,val"
_PICTURES_AT_ONCE = 1024


def write_submission(path: str, ids: Sequence[str], vectors: np.ndarray) -> None:
    """Write the vectors (N, 384) of the pictures `ids`, sorted by id, as one atomic file.

    The file is read back and compared before this returns.

    Raises:
        UserError: an id is repeated or cannot be written to a CSV file.
        ValueError: vectors of another shape, or not finite.
    """
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    _check(ids, vectors)
    order = sorted(range(len(ids)), key=ids.__getitem__)
    ids, vectors = [ids[row] for row in order], vectors[order]
    sink = pa.BufferOutputStream()
    sink.write(f"{HEADER}\n".encode())
    options = pacsv.WriteOptions(include_header=False, quoting_style="none")
    for start in range(0, len(ids), _PICTURES_AT_ONCE):
        some = slice(start, start + _PICTURES_AT_ONCE)
        lines = {"key": _keys(ids[some]), "val": vectors[some].reshape(-1)}
        pacsv.write_csv(pa.table(lines), sink, options)
    write_bytes(path, sink.getvalue())
    back_ids, back = read_submission(path)
    assert back_ids == ids, f"{path} does not hold the ids that were written"
    assert back.tobytes() == vectors.tobytes(), f"{path} does not hold what was written"


def read_submission(path: str) -> tuple[list[str], np.ndarray]:
    """Return the ids, ascending, and their vectors (N, 384) float32.

    Raises:
        UserError: a line differs from the format of `write_submission`; the message names it.
    """
    if not exists(path):
        raise UserError(f"{path} does not exist: give a submission file")
    data = read_bytes(path)
    header, _, body = data.partition(b"\n")
    if header.rstrip(b"\r") != HEADER.encode():
        raise UserError(f"{path}: line 1 is {header[:80]!r}; allowed: {HEADER!r}")
    table = _parse(path, body)
    if not len(table) or len(table) % DIMENSIONS:
        raise UserError(
            f"{path}: the last line is {len(table) + 1}; allowed: {DIMENSIONS} lines a picture, "
            "after the header"
        )
    ids = _picture_ids(path, table["key"])
    return ids, _values(path, table["val"]).reshape(-1, DIMENSIONS)


def check_id(name: str) -> None:
    """Refuse (UserError) a picture's id that cannot be written to the file."""
    if not name or any(c in name for c in ',"\r\n'):
        raise UserError(
            f"id {name!r} has a comma, a quote or a line end, or is empty: rename that picture"
        )


def _check(ids: Sequence[str], vectors: np.ndarray) -> None:
    if vectors.shape != (len(ids), DIMENSIONS) or not len(ids):
        raise ValueError(
            f"vectors have shape {vectors.shape} for {len(ids)} ids; "
            f"allowed: ({len(ids)}, {DIMENSIONS}), one id or more"
        )
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise ValueError(f"the vector of {ids[bad[0]]!r} is not finite")
    seen = set()
    for name in ids:
        check_id(name)
        if name in seen:
            raise UserError(f"two pictures have the id {name!r}: give them different file names")
        seen.add(name)


def _keys(ids: Sequence[str]) -> pa.Array:
    """Return the keys `<id>_0` to `<id>_383` for every id."""
    numbers = pa.array([str(number) for number in range(DIMENSIONS)])
    rows = np.arange(len(ids))
    names = pa.array(ids, pa.string()).take(pa.array(np.repeat(rows, DIMENSIONS)))
    cells = numbers.take(pa.array(np.tile(np.arange(DIMENSIONS), len(ids))))
    return pc.call_function("binary_join_element_wise", [names, cells, pa.scalar("_")])


def _parse(path: str, body: bytes) -> pa.Table:
    bad = []

    def note(row: pacsv.InvalidRow) -> str:
        bad.append(row)
        return "error"

    try:
        return pacsv.read_csv(
            pa.BufferReader(body),
            # Only one thread counts the rows.
            pacsv.ReadOptions(column_names=["key", "val"], use_threads=False),
            pacsv.ParseOptions(
                quote_char=False, ignore_empty_lines=False, invalid_row_handler=note
            ),
            pacsv.ConvertOptions(column_types={"key": pa.string(), "val": pa.string()}),
        )
    except pa.ArrowInvalid as error:
        if not bad:
            raise UserError(f"{path} is not a submission: {error}") from None
        raise UserError(
            f"{path}: line {bad[0].number + 1} is {bad[0].text[:80]!r}; allowed: key,value"
        ) from None


def _picture_ids(path: str, keys: pa.ChunkedArray) -> list[str]:
    firsts = keys.take(pa.array(np.arange(0, len(keys), DIMENSIONS))).to_pylist()
    ids = [key.removesuffix("_0") for key in firsts]
    for start in range(0, len(ids), _PICTURES_AT_ONCE):
        expected = _keys(ids[start : start + _PICTURES_AT_ONCE])
        part = keys.slice(start * DIMENSIONS, len(expected))
        wrong = np.flatnonzero(pc.call_function("not_equal", [part, expected]).to_numpy())
        if len(wrong):
            row = int(wrong[0])
            line, key = start * DIMENSIONS + row + 2, part[row].as_py()
            raise UserError(f"{path}: line {line} is for {key!r}; allowed: {expected[row]}")
    for number, (before, after) in enumerate(pairwise(ids), start=1):
        if before >= after:
            line = number * DIMENSIONS + 2
            raise UserError(f"{path}: line {line}: {after!r} after {before!r}; allowed: ascending")
    return ids


def _values(path: str, texts: pa.ChunkedArray) -> np.ndarray:
    values = _numbers(texts)
    if values is None:
        pictures = range(0, len(texts), DIMENSIONS)
        start = next(n for n in pictures if _numbers(texts.slice(n, DIMENSIONS)) is None)
        row = next(n for n in range(start, len(texts)) if _numbers(texts.slice(n, 1)) is None)
    elif np.isfinite(values).all():
        return values
    else:
        row = int(np.flatnonzero(~np.isfinite(values))[0])
    raise UserError(
        f"{path}: line {row + 2} has the value {texts[row].as_py()!r}; allowed: a finite number"
    )


def _numbers(texts: pa.ChunkedArray) -> np.ndarray | None:
    try:
        return texts.cast(pa.float32()).to_numpy()
    except pa.ArrowInvalid:
        return None
