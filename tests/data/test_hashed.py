import random
import tracemalloc

import numpy as np
import pytest

from img2prompt.data.hashed import HashedMap, HashedSet


@pytest.mark.parametrize("batch", [1, 7, 8192])
def test_a_set_agrees_with_python(batch: int) -> None:
    texts = [f"{n}" for n in np.random.default_rng(0).integers(0, 300, 1000)]
    hashed, reference = HashedSet(), set()
    for start in range(0, len(texts), batch):
        part = texts[start : start + batch]
        expected = []
        for text in part:
            expected.append(text not in reference)
            reference.add(text)
        assert hashed.add(part).tolist() == expected
        assert len(hashed) == len(reference)
    assert all((f"{n}" in hashed) == (f"{n}" in reference) for n in range(-5, 305))


def test_empty_and_repeated_texts() -> None:
    hashed = HashedSet()
    assert hashed.add([]).tolist() == []
    assert "a" not in hashed
    assert hashed.add(["a", "ä", "a"]).tolist() == [True, True, False]
    assert hashed.add([]).tolist() == []
    assert len(HashedSet(["a", "b", "a"])) == 2


@pytest.mark.parametrize("batch", [1, 7, 500, 8192])
def test_a_map_agrees_with_a_dict(batch: int) -> None:
    draw = random.Random(0)
    pairs = [(f"p{draw.randrange(900)}", f"t{draw.randrange(3)}") for _ in range(3000)]
    hashed, reference = HashedMap(), {}
    for start in range(0, len(pairs), batch):
        part = pairs[start : start + batch]
        expected = []
        for key, value in part:
            expected.append((key not in reference, reference.setdefault(key, value) == value))
        new, same = hashed.add(*zip(*part, strict=True))
        assert list(zip(new.tolist(), same.tolist(), strict=True)) == expected
    assert len(hashed) == len(reference)


def test_an_empty_batch_of_a_map() -> None:
    new, same = HashedMap().add([], [])
    assert new.shape == same.shape == (0,)


@pytest.mark.parametrize(("kind", "size"), [("set", 8), ("map", 16)])
def test_bytes_of_a_text(kind: str, size: int) -> None:
    """The figures of the module's docstring."""
    count, batch = 200_000, 1000
    hashed = HashedSet() if kind == "set" else HashedMap()
    tracemalloc.start()
    for start in range(0, count, batch):
        texts = [f"picture {number}" for number in range(start, start + batch)]
        hashed.add(texts) if isinstance(hashed, HashedSet) else hashed.add(texts, texts)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < (size + 1) * count
    assert peak < 3 * size * count + 300 * batch
