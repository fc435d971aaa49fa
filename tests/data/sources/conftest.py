"""Places that sources are read from: a local folder, and filesystems that are none."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from source_places import FlakyFiles, Place

from img2prompt.data.sources import files


@pytest.fixture(params=["", "fsspec+memory://"], ids=["local", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return Place(f"{request.param}{tmp_path}" if request.param else str(tmp_path))


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Place]:
    """A place on FlakyFiles, where retries do not wait."""
    fsspec.register_implementation("flaky", FlakyFiles, clobber=True)
    monkeypatch.setattr(files, "FIRST_WAIT", 0)
    monkeypatch.setattr(FlakyFiles, "errors", [])
    yield Place(f"fsspec+flaky://{tmp_path}")
    FlakyFiles.store.clear()
