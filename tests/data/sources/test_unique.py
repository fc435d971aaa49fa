import numpy as np
import pytest

from img2prompt.data.sources.unique import Ids


@pytest.mark.parametrize("at_once", [1, 7, 8192])
def test_like_a_set(at_once: int) -> None:
    names = [f"{n}" for n in np.random.default_rng(0).integers(0, 300, 1000)]
    ids, seen = Ids(), set()
    for start in range(0, len(names), at_once):
        part = names[start : start + at_once]
        expected = []
        for name in part:
            expected.append(name not in seen)
            seen.add(name)
        assert ids.add(part).tolist() == expected


def test_nothing_is_new_in_nothing() -> None:
    ids = Ids()
    assert ids.add([]).tolist() == []
    assert ids.add(["a", "ä", "a"]).tolist() == [True, True, False]
