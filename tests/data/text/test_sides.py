import pyarrow as pa
import pytest

from img2prompt.data.text.sides import mentions_side


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a cat on the left", True),
        ("Left: a cat", True),
        ("the RIGHT hand of a king", True),
        ("a right-handed archer", True),
        ("leftmost house", True),
        ("looking to the right.", True),
        ("walking leftwards", True),
        ("bright lights", False),
        ("an upright piano, copyright", False),
        ("leftover pizza", False),
        ("righteous knight", False),
        ("", False),
    ],
)
def test_prompts_that_say_left_or_right(prompt: str, expected: bool) -> None:
    assert mentions_side(pa.array([prompt])).to_pylist() == [expected]
