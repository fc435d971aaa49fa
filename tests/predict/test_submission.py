import csv
from pathlib import Path

import numpy as np
import pytest

from img2prompt.errors import UserError
from img2prompt.predict import submission
from img2prompt.predict.submission import read_submission, submission_rows, write_submission


def random_vectors(rows: int) -> np.ndarray:
    vectors = np.random.default_rng(rows).normal(size=(rows, 384))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write_submission(str(tmp_path / "submission.csv"), ["a", "b"], random_vectors(2))
    return tmp_path / "submission.csv"


@pytest.fixture(params=[1 << 24, 5000], ids=["one block", "many blocks"])
def blocks(request, monkeypatch) -> None:
    """Read the file at once, and in blocks of less than a picture."""
    monkeypatch.setattr(submission, "BLOCK_BYTES", request.param)


def test_the_file_has_kaggles_format(written: Path) -> None:
    assert b'"' not in written.read_bytes()
    with open(written, newline="") as file:
        header, *lines = csv.reader(file)
    assert header == ["imgId_eId", "val"]
    assert [key for key, _ in lines] == [f"{i}_{n}" for i in "ab" for n in range(384)]
    values = np.array([np.float32(value) for _, value in lines]).reshape(2, 384)
    np.testing.assert_array_equal(values, random_vectors(2))


@pytest.mark.parametrize("rows", [1, 3, 1500])
def test_every_float32_comes_back_in_the_order_given(tmp_path: Path, rows: int) -> None:
    vectors = random_vectors(rows)
    vectors[0, :6] = [0, -0.0, 1e-45, 3.4028235e38, np.nextafter(np.float32(1), 2), -1e-7]
    ids = [f"{number * 7919 % 1501:08x}_{number % 7}" for number in range(rows)]
    path = str(tmp_path / "submission.csv")
    write_submission(path, ids, vectors)
    back_ids, back = read_submission(path)
    assert back_ids == ids
    assert back.tobytes() == vectors.tobytes()


@pytest.mark.usefixtures("blocks")
def test_windows_line_ends_are_read(written: Path) -> None:
    expected = read_submission(str(written))
    written.write_bytes(written.read_bytes().replace(b"\n", b"\r\n"))
    ids, vectors = read_submission(str(written))
    assert ids == expected[0]
    np.testing.assert_array_equal(vectors, expected[1])


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize(
    ("line", "content", "message"),
    [
        (1, "imgId,val", "line 1 is b'imgId,val'"),
        (2, "a_1,0.5", r"line 2 is for 'a_1'"),
        (40, "a_39,0.5", r"line 40 is for 'a_39'; allowed: a_38"),
        (41, "c_39,0.5", r"line 41 is for 'c_39'; allowed: a_39"),
        (386, "0_0,0.5", r"line 387 is for 'b_1'; allowed: 0_1"),
        (7, "a_5,nan", "line 7 has the value 'nan'"),
        (8, "a_6,-inf", "line 8 has the value '-inf'"),
        (9, "a_7,", "line 9 has the value ''"),
        (500, "b_114,1_0", "line 500 has the value '1_0'"),
        (501, "b_115,1e99", "line 501 has the value '1e99'"),
        (10, "a_8", "line 10 is 'a_8'"),
        (611, "b_225,1,2", "line 611 is 'b_225,1,2'"),
        (12, "", "line 12 is for ''; allowed: a_10"),
        (13, '"a_11",0.5', "line 13 is for '\"a_11\"'"),
    ],
)
def test_a_bad_line_is_named(written: Path, line: int, content: str, message: str) -> None:
    lines = written.read_text().splitlines()
    lines[line - 1] = content
    written.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=message):
        read_submission(str(written))


@pytest.mark.usefixtures("blocks")
def test_wrong_counts_and_repeated_ids_are_named(written: Path) -> None:
    header, *lines = written.read_text().splitlines(keepends=True)
    for content, message in [
        (lines[:-1], "the last line is 768; allowed: 384 lines a picture"),
        ([], "has no line after the header"),
        (lines + lines[:384], "line 770: 'a' is repeated; allowed: each id once"),
    ]:
        written.write_text(header + "".join(content))
        with pytest.raises(UserError, match=message):
            read_submission(str(written))


def test_bytes_that_are_not_text_are_refused(written: Path) -> None:
    written.write_bytes(written.read_bytes().replace(b"a_7,", b"\xff_7,"))
    with pytest.raises(UserError, match=r"submission.csv is not a submission"):
        read_submission(str(written))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent.csv does not exist"):
        read_submission(str(tmp_path / "absent.csv"))


def test_ids_are_file_names_without_ending_in_ascending_order() -> None:
    names = ["10.png", "9.png", "a.b.webp", "sub/0.JPG", "ä c.jpeg"]
    rows = submission_rows(names)
    assert list(rows.items()) == [("0", 3), ("10", 0), ("9", 1), ("a.b", 2), ("ä c", 4)]


def test_a_sample_gives_order_and_pictures() -> None:
    names = ["a.jpg", "b,c.png", "d.jpg", "d.png", "e.png"]
    assert list(submission_rows(names, ["e", "a"]).items()) == [("e", 4), ("a", 0)]
    with pytest.raises(UserError, match=r"2 of 3 ids of the sample have no picture: \['x', 'y'\]"):
        submission_rows(names, ["x", "a", "y"])


@pytest.mark.parametrize("bad", ["a,b.png", 'a"b.png', "a\nb.png", "a\rb.png"])
def test_ids_that_cannot_be_written_are_refused(bad: str) -> None:
    with pytest.raises(UserError, match="has a comma, a quote or a line end in its name: rename"):
        submission_rows(["x.png", bad])


def test_pictures_with_one_id_are_refused() -> None:
    with pytest.raises(UserError, match=r"'x\.jpg' and 'sub/x\.png' both have the id 'x'"):
        submission_rows(["x.jpg", "y.jpg", "sub/x.png"])


def test_bad_vectors_are_refused(tmp_path: Path) -> None:
    vectors = random_vectors(3)
    with pytest.raises(ValueError, match=r"shape \(3, 384\) for 2 ids"):
        write_submission(str(tmp_path / "s.csv"), ["a", "b"], vectors)
    vectors[1, 5] = np.nan
    with pytest.raises(ValueError, match="vector of 'b' is not finite"):
        write_submission(str(tmp_path / "s.csv"), ["a", "b", "c"], vectors)


def test_the_written_file_is_read_back_and_compared(tmp_path: Path, monkeypatch) -> None:
    real = submission._format
    monkeypatch.setattr(submission, "_format", lambda part: real((part[0], part[1] + 1)))
    with pytest.raises(AssertionError, match="does not hold what was written"):
        write_submission(str(tmp_path / "s.csv"), ["a"], random_vectors(1))
