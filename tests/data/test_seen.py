import random
import tracemalloc

import pytest

from img2prompt.data import seen
from img2prompt.data.seen import Seen


@pytest.mark.parametrize("newest", [1, 7, 1 << 18])
def test_same_answers_as_a_dict(newest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen, "_NEWEST", newest)
    draw = random.Random(0)
    found, before = Seen(), {}
    for _ in range(3000):
        picture, prompt = f"p{draw.randrange(900)}", f"t{draw.randrange(3)}"
        expected = before[picture] == prompt if picture in before else None
        before.setdefault(picture, prompt)
        assert found.add(picture, prompt) is expected


def test_bytes_of_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen, "_NEWEST", 1000)
    found, count = Seen(), 50_000
    tracemalloc.start()
    for number in range(count):
        found.add(f"picture {number}", "prompt")
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 18 * count
    assert peak < 40 * count
