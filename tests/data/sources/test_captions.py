import json

import numpy as np
import pytest

from img2prompt.config.sources import PictureSource
from img2prompt.data.sources.captions import choose_caption

FIRST = PictureSource(path="x")
DRAWN = PictureSource(path="x", captions="drawn")


@pytest.mark.parametrize(
    "captions",
    [
        ["a fox", "a red fox"],
        ("a fox", "a red fox"),
        np.array(["a fox", "a red fox"]),
        np.array(["a fox", "a red fox"], object),
        '["a fox", "a red fox"]',
        " ['a fox', 'a red fox'] ",
        ["", " ", "a fox"],
        '["a fox"]',
    ],
)
def test_the_first_of_a_list_is_used(captions: object) -> None:
    assert choose_caption(captions, FIRST, "id") == "a fox"
    assert choose_caption(captions, DRAWN, "id") in ("a fox", "a red fox")


@pytest.mark.parametrize(
    "prompt",
    ["a fox", "[cat:dog:0.5]", "[a fox]", "['a fox', 5]", "[1, 2]", [1, 2], None, 5, "[" * 9999],
)
def test_other_prompts_are_unchanged(prompt: object) -> None:
    assert choose_caption(prompt, FIRST, "id") is prompt


@pytest.mark.parametrize("captions", [[], "[]", [" "]])
def test_a_list_without_captions_is_an_empty_prompt(captions: object) -> None:
    assert choose_caption(captions, DRAWN, "id") == ""


def test_drawing_depends_on_picture_and_seed() -> None:
    captions = json.dumps([str(number) for number in range(5)])
    drawn = [choose_caption(captions, DRAWN, f"id{n}") for n in range(500)]
    assert drawn == [choose_caption(captions, DRAWN, f"id{n}") for n in range(500)]
    assert all(60 < drawn.count(str(number)) < 140 for number in range(5))
    other = PictureSource(path="x", captions="drawn", captions_seed=1)
    assert drawn != [choose_caption(captions, other, f"id{n}") for n in range(500)]
