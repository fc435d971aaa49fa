from itertools import count

from img2prompt.data.sources.pieces import in_pieces


def test_pieces_are_lazy() -> None:
    pieces = in_pieces(count(), 3)
    assert [next(pieces), next(pieces)] == [[0, 1, 2], [3, 4, 5]]
    assert list(in_pieces("abcde", 2)) == [["a", "b"], ["c", "d"], ["e"]]
    assert list(in_pieces([], 2)) == []
