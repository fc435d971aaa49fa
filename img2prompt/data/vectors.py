"""Prompt vectors: size, checks, and Parquet columns."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import DTypeLike

from img2prompt.errors import UserError

DIMENSIONS = 384
"""Size of an all-MiniLM-L6-v2 vector."""

VECTOR = pa.list_(pa.float32(), DIMENSIONS)
"""Parquet type of a vector column."""

UNIT_TOLERANCE = 1e-3
_ROWS_AT_ONCE = 65536


def vector_column(vectors: np.ndarray, dtype: DTypeLike = np.float32) -> pa.FixedSizeListArray:
    """Return vectors (N, D) as a column of fixed-size lists."""
    vectors = np.ascontiguousarray(vectors, dtype=dtype)
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])


def matrix(column: pa.ChunkedArray) -> np.ndarray:
    """Return a column of fixed-size lists of D numbers as an (N, D) array."""
    array = column.combine_chunks()
    width = array.type.list_size
    return array.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)


def to_matrix(column: pa.ChunkedArray) -> np.ndarray:
    """Return a column of equal-length vectors, in any of Ray Data's encodings, as (N, D)."""
    array = column.combine_chunks()
    if hasattr(array, "to_numpy_ndarray"):
        return array.to_numpy_ndarray()
    return np.stack(array.to_numpy(zero_copy_only=False)) if len(array) else np.empty((0, 0))


def check_unit(vectors: np.ndarray) -> np.ndarray:
    """Return the vectors as C-contiguous float32 (N, D), all finite and of unit length to 1e-3.

    Raises:
        ValueError: names the first row that is not.
    """
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    if vectors.ndim != 2:
        raise ValueError(f"vectors have shape {vectors.shape}; allowed: (rows, dimensions)")
    for start in range(0, len(vectors), _ROWS_AT_ONCE):
        part = vectors[start : start + _ROWS_AT_ONCE]
        length = np.sqrt(np.einsum("ij,ij->i", part, part))
        bad = np.flatnonzero(~(np.abs(length - 1) <= UNIT_TOLERANCE))
        if len(bad):
            raise ValueError(
                f"vector {start + bad[0]} has length {length[bad[0]]}; allowed: finite, "
                f"1 to within {UNIT_TOLERANCE}"
            )
    return vectors


def finite_rows(vectors: np.ndarray) -> np.ndarray:
    """Return which rows (N,) of vectors (N, D) hold no NaN or infinite value."""
    return np.asarray(np.all(np.isfinite(vectors), axis=1))


def require_finite(vectors: np.ndarray, names: Sequence[str], source: str) -> None:
    """Check that all vectors (N, D) are finite; `names` are those of the rows.

    Raises:
        UserError: some are not; `source` says what made them and begins the message.
    """
    bad = np.flatnonzero(~finite_rows(vectors))
    if len(bad):
        first = ", ".join(repr(names[row]) for row in bad[:5])
        raise UserError(
            f"{source}: {len(bad)} of {len(vectors)} vectors have values that are NaN or infinite, "
            f"the first of {first}. The weights are finite, so a value is too large for the "
            "precision: use precision fp32, or leave these rows out"
        )


def exact_cosine(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return float64 dot products (N,) of unit rows (N, D), which decide every threshold.

    The sum runs over one row at a time, so a pair has the same bits in any batch (a BLAS product
    does not guarantee that).
    """
    return np.sum(np.multiply(left, right, dtype=np.float64), axis=1)


def unit_rows(vectors: np.ndarray, name: str = "vectors") -> np.ndarray:
    """Return rows (N, D) divided by their lengths, float64.

    Raises:
        ValueError: names the first row that is zero or not finite.
    """
    vectors = np.asarray(vectors, dtype=np.float64)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    bad = np.flatnonzero(~(np.isfinite(length) & (length > 0)))
    if len(bad):
        raise ValueError(f"{name}: row {bad[0]} has length {length[bad[0], 0]}; allowed: above 0")
    return vectors / length
