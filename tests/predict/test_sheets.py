import csv
import io

import pytest

from img2prompt.predict.sheets import sheet


def cells(data: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(data.decode(), newline="")))


@pytest.mark.parametrize("text", ["=1+1", "+1", "-2", "@SUM(A1)", "\t=1", "\r=1", "＝1"])  # noqa: RUF001
def test_texts_that_could_be_formulas_are_marked(text: str) -> None:
    assert cells(sheet(["a"], [[text]])) == [["a"], [f"'{text}"]]


def test_other_cells_stay_as_they_are() -> None:
    rows = [['a, "b"\nc', -0.5, 3], ["a=b", "猫", "'x"]]
    expected = [['a, "b"\nc', "-0.5", "3"], ["a=b", "猫", "'x"]]
    assert cells(sheet(["x", "y", "z"], rows)) == [["x", "y", "z"], *expected]
