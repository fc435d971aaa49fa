from pathlib import Path

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


def test_a_file_of_blocked_words_must_exist(tmp_path: Path) -> None:
    assert read_blocked("") == b""
    with pytest.raises(UserError, match=r"blocked_words: .*absent cannot be read"):
        read_blocked(str(tmp_path / "absent"))
