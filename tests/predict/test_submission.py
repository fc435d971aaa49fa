import csv
from pathlib import Path

import numpy as np
import pytest

from img2prompt.errors import UserError
from img2prompt.predict import submission
from img2prompt.predict.submission import read_submission, write_submission


def random_vectors(rows: int) -> np.ndarray:
    vectors = np.random.default_rng(rows).normal(size=(rows, 384))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write_submission(str(tmp_path / "submission.csv"), ["b", "a"], random_vectors(2))
    return tmp_path / "submission.csv"


def test_the_file_has_kaggles_format(written: Path) -> None:
    assert b'"' not in written.read_bytes()
    with open(written, newline="") as file:
        header, *lines = csv.reader(file)
    assert header == ["imgId_eId", "val"]
    assert [key for key, _ in lines] == [f"{i}_{n}" for i in "ab" for n in range(384)]
    values = np.array([np.float32(value) for _, value in lines]).reshape(2, 384)
    np.testing.assert_array_equal(values, random_vectors(2)[::-1])


@pytest.mark.parametrize("rows", [1, 3, 1500])
def test_every_float32_comes_back(tmp_path: Path, rows: int) -> None:
    vectors = random_vectors(rows)
    vectors[0, :6] = [0, -0.0, 1e-45, 3.4028235e38, np.nextafter(np.float32(1), 2), -1e-7]
    ids = [f"{number:08x}_{number % 7}" for number in range(rows)]
    order = np.random.default_rng(0).permutation(rows)
    path = str(tmp_path / "deep" / "submission.csv")
    write_submission(path, [ids[n] for n in order], vectors[order])
    back_ids, back = read_submission(path)
    assert back_ids == sorted(ids)
    assert back.tobytes() == vectors[np.argsort(ids)].tobytes()


def test_windows_line_ends_are_read(written: Path) -> None:
    expected = read_submission(str(written))
    written.write_bytes(written.read_bytes().replace(b"\n", b"\r\n"))
    ids, vectors = read_submission(str(written))
    assert ids == expected[0]
    np.testing.assert_array_equal(vectors, expected[1])


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
        (11, "a_9,1,2", "line 11 is 'a_9,1,2'"),
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


def test_wrong_counts_and_orders_are_named(written: Path) -> None:
    header, *lines = written.read_text().splitlines(keepends=True)
    for content, message in [
        (lines[:-1], "the last line is 768; allowed: 384 lines a picture"),
        ([], "not a submission: Empty CSV file"),
        (lines[384:] + lines[:384], "line 386: 'a' after 'b'; allowed: ascending"),
        (lines[:384] * 2, "line 386: 'a' after 'a'; allowed: ascending"),
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


@pytest.mark.parametrize("bad", ["", "a,b", 'a"b', "a\nb", "a\rb"])
def test_ids_that_cannot_be_written_to_a_csv_file_are_refused(tmp_path: Path, bad: str) -> None:
    with pytest.raises(UserError, match="id "):
        write_submission(str(tmp_path / "s.csv"), ["x", bad], random_vectors(2))
    assert not (tmp_path / "s.csv").exists()


def test_repeated_ids_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="two pictures have the id 'x'"):
        write_submission(str(tmp_path / "s.csv"), ["x", "y", "x"], random_vectors(3))


def test_bad_vectors_are_refused(tmp_path: Path) -> None:
    vectors = random_vectors(3)
    with pytest.raises(ValueError, match=r"shape \(3, 384\) for 2 ids"):
        write_submission(str(tmp_path / "s.csv"), ["a", "b"], vectors)
    vectors[1, 5] = np.nan
    with pytest.raises(ValueError, match="vector of 'b' is not finite"):
        write_submission(str(tmp_path / "s.csv"), ["a", "b", "c"], vectors)


def test_the_written_file_is_read_back_and_compared(tmp_path: Path, monkeypatch) -> None:
    def damaged(uri: str, data) -> None:
        Path(uri).write_bytes(bytes(data).replace(b"0.0", b"0.1", 1))

    monkeypatch.setattr(submission, "write_bytes", damaged)
    with pytest.raises(AssertionError, match="does not hold what was written"):
        write_submission(str(tmp_path / "s.csv"), ["a"], random_vectors(1))
