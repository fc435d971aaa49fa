"""Kaggle's submission file: a line `<imgId>_<eId>,<val>` for each of a picture's 384 numbers.

Header `imgId_eId,val`; pictures in ascending order of id or in that of a sample file, numbers in
order. Values are written with the fewest digits that give the same float32 back. 16,000 pictures
make 6.1 million lines, so columns of many pictures are formatted and parsed at once.
"""

import functools
import posixpath
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from img2prompt.data.ahead import map_ahead
from img2prompt.data.vectors import DIMENSIONS
from img2prompt.distributed.placement import usable_cores
from img2prompt.errors import UserError
from img2prompt.storage import exists, open_uri

HEADER = "imgId_eId,val"
BLOCK_BYTES = 1 << 20
"""Bytes of a file that a thread parses at once. Larger buffers cost more page faults than calls."""
_PICTURES_AT_ONCE = 64


def submission_rows(names: Sequence[str], sample: Sequence[str] = ()) -> dict[str, int]:
    """Return the row of each id, the file name without ending, in the order of the submission.

    Args:
        names: paths of the predicted pictures.
        sample: ids of a sample submission, whose order is taken and whose pictures are needed;
            others are left out. Empty: all pictures, in ascending order of id.

    Raises:
        UserError: two pictures have one id, an id cannot be written, or a picture of the sample
            is missing.
    """
    wanted = set(sample)
    rows = dict[str, int]()
    for row, name in enumerate(names):
        own = posixpath.splitext(posixpath.basename(name))[0]
        if wanted and own not in wanted:
            continue
        if any(character in own for character in ',"\r\n'):
            raise UserError(f"{name!r} has a comma, a quote or a line end in its name: rename it")
        if own in rows:
            raise UserError(f"{names[rows[own]]!r} and {name!r} both have the id {own!r}")
        rows[own] = row
    if absent := [own for own in sample if own not in rows]:
        raise UserError(
            f"{len(absent)} of {len(sample)} ids of the sample have no picture: {absent[:3]}"
        )
    return {own: rows[own] for own in sample or sorted(rows)}


def write_submission(path: str, ids: Sequence[str], vectors: np.ndarray) -> None:
    """Write the vectors (N, 384) of the pictures `ids`, in their order, to a local file.

    The file is read back and compared before this returns.

    Raises:
        ValueError: vectors of another shape, or not finite.
    """
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    _check(ids, vectors)
    starts = range(0, len(ids), _PICTURES_AT_ONCE)
    parts = ((ids[n : n + _PICTURES_AT_ONCE], vectors[n : n + _PICTURES_AT_ONCE]) for n in starts)
    with open(path, "wb") as file:
        file.write(f"{HEADER}\n".encode())
        for lines in map_ahead(_format, parts, usable_cores()):
            file.write(lines)
    written_ids, written = read_submission(path)
    assert written_ids == list(ids), f"{path} does not hold the ids that were written"
    assert written.tobytes() == vectors.tobytes(), f"{path} does not hold what was written"


def read_submission(uri: str) -> tuple[list[str], np.ndarray]:
    """Return the ids and their vectors (N, 384) float32, in the order of the file.

    Raises:
        UserError: a line differs from the format of `write_submission`; the message names it.
    """
    if not exists(uri):
        raise UserError(f"{uri} does not exist: give a submission file")
    ids, vectors = list[str](), list[np.ndarray]()
    parsed = map_ahead(functools.partial(_parse, uri), _blocks(uri), usable_cores())
    for some_ids, some_vectors in parsed:
        ids += some_ids
        vectors.append(some_vectors)
    if not ids:
        raise UserError(f"{uri} has no line after the header")
    if len(set(ids)) < len(ids):
        seen = set[str]()
        row = next(row for row, own in enumerate(ids) if own in seen or seen.add(own))
        raise UserError(
            f"{uri}: line {row * DIMENSIONS + 2}: {ids[row]!r} is repeated; allowed: each id once"
        )
    return ids, np.concatenate(vectors)


def _check(ids: Sequence[str], vectors: np.ndarray) -> None:
    if vectors.shape != (len(ids), DIMENSIONS) or not len(ids):
        raise ValueError(
            f"vectors have shape {vectors.shape} for {len(ids)} ids; "
            f"allowed: ({len(ids)}, {DIMENSIONS}), one id or more"
        )
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise ValueError(f"the vector of {ids[bad[0]]!r} is not finite")


def _keys(ids: Sequence[str]) -> pa.Array:
    """Return the keys `<id>_0` to `<id>_383` for every id."""
    numbers = pa.array([str(number) for number in range(DIMENSIONS)])
    rows = np.arange(len(ids))
    names = pa.array(ids, pa.string()).take(pa.array(np.repeat(rows, DIMENSIONS)))
    cells = numbers.take(pa.array(np.tile(np.arange(DIMENSIONS), len(ids))))
    return pc.call_function("binary_join_element_wise", [names, cells, pa.scalar("_")])


def _format(part: tuple[Sequence[str], np.ndarray]) -> pa.Buffer:
    """Return the lines of some pictures."""
    ids, vectors = part
    sink = pa.BufferOutputStream()
    options = pacsv.WriteOptions(include_header=False, quoting_style="none")
    pacsv.write_csv(pa.table({"key": _keys(ids), "val": vectors.reshape(-1)}), sink, options)
    return sink.getvalue()


def _blocks(uri: str) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of whole pictures, about BLOCK_BYTES at a time.

    Each block comes with the number of lines before it, the header left out. The last one may end
    with a part of a picture.
    """
    fs, path = open_uri(uri)
    with fs.open_input_stream(path) as stream:
        header, _, rest = stream.read(BLOCK_BYTES).partition(b"\n")
        if header.rstrip(b"\r") != HEADER.encode():
            raise UserError(f"{uri}: line 1 is {header[:80]!r}; allowed: {HEADER!r}")
        lines = 0
        while block := stream.read(BLOCK_BYTES):
            whole, rest = _cut(rest + block)
            if whole:
                yield lines, whole
                lines += whole.count(b"\n")
    if rest:
        yield lines, rest


def _cut(data: bytes) -> tuple[bytes, bytes]:
    """Cut data after the last line with which a picture may end."""
    ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n"))
    pictures = len(ends) // DIMENSIONS
    size = int(ends[pictures * DIMENSIONS - 1]) + 1 if pictures else 0
    return data[:size], data[size:]


def _parse(uri: str, block: tuple[int, bytes]) -> tuple[list[str], np.ndarray]:
    """Return the ids and vectors of a block."""
    lines, body = block
    table = _parse_texts(uri, body, lines)
    if len(table) % DIMENSIONS:
        raise UserError(
            f"{uri}: the last line is {lines + len(table) + 1}; allowed: {DIMENSIONS} lines a "
            "picture, after the header"
        )
    ids = _picture_ids(uri, table["key"], lines)
    return ids, _values(uri, table["val"], lines).reshape(-1, DIMENSIONS)


def _parse_texts(uri: str, body: bytes, lines: int) -> pa.Table:
    """Return the columns of some lines as texts; `lines` were before them, after the header."""
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
            raise UserError(f"{uri} is not a submission: {error}") from None
        line, text = lines + bad[0].number + 1, bad[0].text[:80]
        raise UserError(f"{uri}: line {line} is {text!r}; allowed: key,value") from None


def _picture_ids(uri: str, keys: pa.ChunkedArray, lines: int) -> list[str]:
    firsts = keys.take(pa.array(np.arange(0, len(keys), DIMENSIONS))).to_pylist()
    ids = [key.removesuffix("_0") for key in firsts]
    expected = _keys(ids)
    wrong = np.flatnonzero(pc.call_function("not_equal", [keys, expected]).to_numpy())
    if len(wrong):
        row = int(wrong[0])
        line, key = lines + row + 2, keys[row].as_py()
        raise UserError(f"{uri}: line {line} is for {key!r}; allowed: {expected[row]}")
    return ids


def _values(uri: str, texts: pa.ChunkedArray, lines: int) -> np.ndarray:
    values = _numbers(texts)
    if values is not None and np.isfinite(values).all():
        return values
    rows = range(len(texts))
    row = next(row for row in rows if not _is_finite(texts.slice(row, 1)))
    raise UserError(
        f"{uri}: line {lines + row + 2} has the value {texts[row].as_py()!r}; "
        "allowed: a finite number"
    )


def _numbers(texts: pa.ChunkedArray) -> np.ndarray | None:
    try:
        return texts.cast(pa.float32()).to_numpy()
    except pa.ArrowInvalid:
        return None


def _is_finite(text: pa.ChunkedArray) -> bool:
    values = _numbers(text)
    return values is not None and bool(np.isfinite(values).all())
