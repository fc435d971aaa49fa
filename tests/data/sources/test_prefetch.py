import pytest

from img2prompt.data.sources.prefetch import in_order


def test_order_is_kept_and_errors_are_raised() -> None:
    def broken(item: int) -> int:
        if item == 2:
            raise KeyError("bug")
        return item

    values = in_order(broken, [1, 2, 3])
    assert next(values) == 1
    with pytest.raises(KeyError, match="bug"):
        next(values)
    assert list(in_order(str, range(1500))) == [str(number) for number in range(1500)]
