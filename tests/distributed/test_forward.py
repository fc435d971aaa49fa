"""Models over pictures in this process; `test_actors.py` compares them with actors."""

import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from img2prompt.distributed.forward import forward_in_process


def make_sums(device: torch.device):
    """A model from pixels (B, S, S, 3) to their sums in two columns."""

    def sums(pixels: Tensor) -> dict[str, np.ndarray]:
        total = pixels.long().sum(dim=(1, 2, 3)).numpy()
        return {"total": total, "pair": np.stack([total, -total], axis=1).astype(np.float32)}

    return sums


def load(level: int) -> dict[str, Any]:
    """Three pictures of one pixel: `level`, `level + 1`, `level + 2`."""
    levels = np.arange(level, level + 3)
    pixels = np.repeat(levels, 3).reshape(3, 1, 1, 3).astype(np.uint8)
    return {"id": levels.astype(str), "pixels": pixels}


def test_rows_come_in_order_with_the_columns_of_both() -> None:
    tables = list(forward_in_process(make_sums, load, [0, 10, 20], batch_size=2))
    assert [len(table) for table in tables] == [2, 1] * 3
    rows = [row for table in tables for row in table.to_pylist()]
    levels = [0, 1, 2, 10, 11, 12, 20, 21, 22]
    assert [row["id"] for row in rows] == [str(level) for level in levels]
    assert [row["total"] for row in rows] == [3 * level for level in levels]
    assert [row["pair"] for row in rows] == [[3 * level, -3 * level] for level in levels]
    assert all(row["forward_s"] > 0 for row in rows)
    assert "pixels" not in rows[0]


def test_a_failing_load_stops_and_no_thread_stays() -> None:
    before = threading.active_count()
    with pytest.raises(ValueError, match="invalid literal"):
        list(forward_in_process(make_sums, lambda task: load(int(task)), ["1", "x"], batch_size=2))
    assert threading.active_count() == before


def test_no_tasks_load_no_model() -> None:
    def fail(device: torch.device):
        raise AssertionError

    assert list(forward_in_process(fail, load, [], batch_size=2)) == []
