"""Run the benchmark of file formats on a tiny size; its figures are measured by hand."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import shard_formats
from shard_formats import Count, Options

TINY = Options(rows=22, sizes=(16,), group=4, pictures=Path("absent"), repeats=1)


@pytest.fixture(scope="module")
def rows() -> pa.Table:
    return shard_formats.make_rows(TINY, shard_formats.base_pictures(TINY), 16, "png")


def test_every_format_is_measured_and_printed(capsys: pytest.CaptureFixture) -> None:
    results = shard_formats.run(TINY)
    printed = capsys.readouterr().out
    assert list(results) == ["16 png", "16 jpeg"]
    for measured in results.values():
        small, large, arrow, _, loose = measured
        assert all(kind.name in printed for kind in measured)
        assert small.group.bytes < large.group.bytes
        assert arrow.group.bytes < arrow.disk
        assert loose.group.reads == 2 * 4
        assert all(kind.scan > 0 and kind.shuffled > 0 for kind in measured)
        assert small.against(small)[1] == f"{small.disk / 1e6:.1f} MB 1.00x"


@pytest.mark.parametrize("kind", shard_formats.formats(TINY), ids=lambda kind: kind.name)
def test_a_format_returns_any_range_of_rows(
    tmp_path: Path, rows: pa.Table, kind: shard_formats.Format
) -> None:
    kind.write(rows, tmp_path / "rows")
    fetch = kind.open(tmp_path / "rows", Count())
    for start, stop in ((0, 22), (3, 9), (20, 22), (8, 12)):
        assert fetch(start, stop).combine_chunks().equals(rows.slice(start, stop - start))


def test_a_format_that_loses_a_row_is_refused(tmp_path: Path, rows: pa.Table) -> None:
    kind = shard_formats.tar("tar")
    broken = replace(kind, write=lambda table, path: kind.write(table.slice(1), path))
    with pytest.raises(AssertionError, match="tar does not give the same rows back"):
        shard_formats.measure(broken, rows, tmp_path / "rows", TINY)


def test_rows_differ_even_when_pictures_are_few(rows: pa.Table) -> None:
    base = shard_formats.base_pictures(TINY)[:3]
    repeated = shard_formats.make_rows(TINY, base, 16, "png")
    assert len(set(repeated["image"].to_pylist())) == 22
    assert repeated["target"].equals(rows["target"])


def test_real_pictures(shared_data: Path) -> None:
    base = shard_formats.base_pictures(replace(TINY, pictures=shared_data / "pictures"))
    assert len(base) == 128
    assert min(min(picture.shape[:2]) for picture in base) >= 300
