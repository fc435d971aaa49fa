from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from img2prompt.config.prepare import CleanConfig
from img2prompt.data.text.rules import PromptRules, read_blocked
from img2prompt.errors import UserError


def test_every_rule_of_a_config_judges_a_prompt(tmp_path: Path) -> None:
    blocked = tmp_path / "blocked.txt"
    blocked.write_text("gun\n")
    config = CleanConfig(blocked_words=str(blocked), languages=("en",), max_words=12)
    rules = PromptRules(config, read_blocked(config.blocked_words))
    assert rules.reason("a red cat on a roof") is None
    assert rules.reason("a gun on a table") == "blocked word: 'gun' at word 2"
    german = "ein kleines Haus am Ufer des Sees bei Sonnenuntergang"
    assert str(rules.reason(german)).startswith("other language: de ")
    assert rules.reason("word " * 13) == "too many words: 13; allowed: 1 to 12"


@pytest.mark.parametrize(
    ("limit", "rejected"), [(0.5, [False, True, True]), (1, [False] * 2 + [True])]
)
def test_tokens_are_counted_of_prompts_that_are_fit_otherwise(limit, rejected) -> None:
    counted: list[str] = []

    def count(prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        counted.extend(prompts)
        return np.array([1, 2][: len(prompts)]), np.array([2, 3][: len(prompts)])

    rules = PromptRules(CleanConfig(max_unknown=limit, max_words=2), b"")
    reasons = rules.reasons(["half known", "less known", "one two three"], count)
    assert [reason is not None for reason in reasons] == rejected
    assert counted == (["half known", "less known"] if limit < 1 else [])


def test_a_file_of_blocked_words_must_exist(tmp_path: Path) -> None:
    assert read_blocked("") == b""
    with pytest.raises(UserError, match=r"blocked_words: .*absent cannot be read"):
        read_blocked(str(tmp_path / "absent"))
