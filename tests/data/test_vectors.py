import numpy as np
import pyarrow as pa
import pytest

from img2prompt.data.vectors import (
    VECTOR,
    check_unit,
    exact_cosine,
    finite_rows,
    matrix,
    require_finite,
    vector_column,
)
from img2prompt.errors import UserError


def random_rows(rows: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(rows, 384))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_a_column_gives_the_same_vectors_back(rows: int) -> None:
    vectors = random_rows(rows)
    column = vector_column(vectors[::-1])
    assert column.type == VECTOR
    back = matrix(pa.table({"target": column})["target"])
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, vectors[::-1])


def test_check_unit_allows_a_thousandth() -> None:
    vectors = random_rows(3)
    np.testing.assert_array_equal(check_unit(vectors * 1.0009), vectors * 1.0009)
    with pytest.raises(ValueError, match=r"vector 1 has length 1\.00"):
        check_unit(vectors * [[1], [1.0011], [1]])


def test_exact_cosine_has_the_same_bits_in_any_batch() -> None:
    left, right = random_rows(500, 1), random_rows(500, 2)
    together = exact_cosine(left, right)
    assert together.dtype == np.float64
    alone = [exact_cosine(left[i : i + 1], right[i : i + 1])[0] for i in range(500)]
    assert together.tolist() == alone
    strided = exact_cosine(left[::3], np.repeat(right[::3], 2, axis=0)[::2])
    assert strided.tolist() == together[::3].tolist()
    expected = np.einsum("ij,ij->i", left.astype(np.float64), right.astype(np.float64))
    np.testing.assert_allclose(together, expected, rtol=0, atol=1e-15)


def test_rows_with_a_non_finite_value_are_found_and_named() -> None:
    vectors = random_rows(9).astype(np.float16)
    names = [f"row-{n}" for n in range(9)]
    require_finite(vectors, names, "targets")
    for row, value in ((2, np.nan), (5, np.inf), (8, -np.inf)):
        vectors[row, row] = value
    assert np.flatnonzero(~finite_rows(vectors)).tolist() == [2, 5, 8]
    with pytest.raises(UserError) as caught:
        require_finite(vectors, names, "targets")
    assert str(caught.value).startswith(
        "targets: 3 of 9 vectors have values that are NaN or infinite, the first of 'row-2', "
        "'row-5', 'row-8'."
    )
