from itertools import count

from img2prompt.data.sources.portions import in_portions


def test_pieces_are_lazy() -> None:
    pieces = in_portions(count(), 3)
    assert [next(pieces), next(pieces)] == [[0, 1, 2], [3, 4, 5]]
    assert list(in_portions("abcde", 2)) == [["a", "b"], ["c", "d"], ["e"]]
    assert list(in_portions([], 2)) == []
