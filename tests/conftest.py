"""Fixtures that every test may use."""

from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real pictures and prompts that lie beside the checkout."""
    if not (SHARED_DATA / "pictures.csv").exists():
        pytest.skip(f"needs the real pictures and prompts in {SHARED_DATA}")
    return SHARED_DATA
