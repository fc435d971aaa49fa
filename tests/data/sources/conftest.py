"""Locations of sources: a local folder, and other filesystems."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from source_locations import FlakyFiles, SourceLocation

from img2prompt.data.sources import files


@pytest.fixture(params=["", "fsspec+memory://"], ids=["local", "memory"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> SourceLocation:
    return SourceLocation(f"{request.param}{tmp_path}" if request.param else str(tmp_path))


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[SourceLocation]:
    """A location on FlakyFiles, where retries do not wait."""
    fsspec.register_implementation("flaky", FlakyFiles, clobber=True)
    monkeypatch.setattr(files, "FIRST_WAIT", 0)
    monkeypatch.setattr(FlakyFiles, "errors", [])
    yield SourceLocation(f"fsspec+flaky://{tmp_path}")
    FlakyFiles.store.clear()
