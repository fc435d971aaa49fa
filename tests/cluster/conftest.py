from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from nodes import ROOT, clean_environment, local_nodes

StartNodes = Callable[..., AbstractContextManager[dict[str, str]]]


@pytest.fixture
def outside(tmp_path: Path) -> dict[str, str]:
    """Return the environment of a user without a cluster and without a token."""
    return {**clean_environment(), "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="session")
def start_nodes() -> StartNodes:
    return local_nodes
