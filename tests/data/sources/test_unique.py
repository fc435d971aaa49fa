import numpy as np
import pytest

from img2prompt.data.sources import Rejected, unique, unique_ids


@pytest.mark.parametrize("at_once", [1, 7, 8192])
def test_like_a_set(monkeypatch, at_once: int) -> None:
    monkeypatch.setattr(unique, "_ROWS_AT_ONCE", at_once)
    names = [f"{n}" for n in np.random.default_rng(0).integers(0, 300, 1000)]
    rows = [{"id": name} if n % 5 else Rejected(name, "x: y") for n, name in enumerate(names)]
    seen, expected = set(), []
    for row in rows:
        if isinstance(row, Rejected):
            expected.append(row)
        elif row["id"] in seen:
            name = row["id"]
            expected.append(Rejected(name, f"repeated id: {name!r}; allowed: one row an id"))
        else:
            seen.add(row["id"])
            expected.append(row)
    assert list(unique_ids(rows)) == expected


def test_rows_are_not_all_awaited(monkeypatch) -> None:
    monkeypatch.setattr(unique, "_ROWS_AT_ONCE", 4)

    def endless():
        number = 0
        while True:
            yield {"id": str(number)}
            number += 1

    rows = unique_ids(endless())
    assert [next(rows)["id"] for _ in range(10)] == [str(n) for n in range(10)]
