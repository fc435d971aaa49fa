from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from img2prompt.errors import UserError
from img2prompt.storage import exists, read_bytes, write_bytes


def test_a_failed_write_leaves_the_old_file_or_none(tmp_path: Path) -> None:
    path = str(tmp_path / "folder" / "file.bin")
    with pytest.raises(TypeError):
        write_bytes(path, 3.5)  # type: ignore[arg-type]
    assert not exists(path)
    write_bytes(path, b"first")
    with pytest.raises(TypeError):
        write_bytes(path, None)  # type: ignore[arg-type]
    assert read_bytes(path) == b"first"
    write_bytes(path, b"second")
    assert read_bytes(path) == b"second"
    assert [file.name for file in (tmp_path / "folder").iterdir()] == ["file.bin"]


def test_concurrent_writers_leave_one_whole_file(tmp_path: Path) -> None:
    path = str(tmp_path / "file.bin")
    contents = [bytes([number]) * 3_000_000 for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda data: write_bytes(path, data), contents * 4))
    assert read_bytes(path) in contents
    assert [file.name for file in tmp_path.iterdir()] == ["file.bin"]


def test_options_of_a_uri_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"region=eu has options after '\?'.*AWS_ENDPOINT_URL"):
        exists("s3://bucket/run?region=eu")
    write_bytes(f"file://{tmp_path}/what%3F", b"x")
    assert read_bytes(str(tmp_path / "what?")) == b"x"


def test_a_scheme_without_a_file_system_is_a_user_error() -> None:
    with pytest.raises(UserError, match="nowhere://bucket"):
        exists("nowhere://bucket/out")
