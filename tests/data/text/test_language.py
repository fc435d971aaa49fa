import sys
from pathlib import Path

import pytest

from img2prompt.data.text.language import LanguageFilter
from img2prompt.data.text.normalise import normalise
from img2prompt.errors import UserError


@pytest.mark.parametrize(
    ("prompt", "language"),
    [
        ("eine rote katze auf einem dach bei nacht", "de"),
        ("portrait d'une jeune femme au bord de la mer, lumière douce", "fr"),
        ("retrato de una mujer joven junto al mar", "es"),
        ("um gato vermelho no telhado à noite", "pt"),
        ("夜の屋根の上の赤い猫", "ja"),
        ("красная кошка на крыше ночью", "ru"),
    ],
)
def test_certain_languages(prompt: str, language: str) -> None:
    reason = LanguageFilter(["en"]).reason(prompt)
    assert reason
    assert reason.startswith(f"other language: {language} with probability ")
    assert reason.endswith("; allowed: en")
    assert LanguageFilter(["en", language]).reason(prompt) is None


@pytest.mark.parametrize("prompt", ["mona lisa", "cat", "a shiba inu", "8k", "🧑", "1 9 8 7", ""])
def test_uncertain_prompts_pass(prompt: str) -> None:
    assert LanguageFilter(["en"]).reason(prompt) is None


def test_real_english_prompts_pass(shared_data: Path) -> None:
    lines = (shared_data / "prompts" / "real_prompts.txt").read_text().splitlines()
    prompts = list(filter(None, map(normalise, lines)))[::4]
    languages = LanguageFilter(["en"])
    refused = [prompt for prompt in prompts if languages.reason(prompt)]
    assert 0 < len(refused) < 0.01 * len(prompts)


def test_unknown_language() -> None:
    with pytest.raises(UserError, match=r"languages has \['english', 'xx'\]; allowed: .*, en, "):
        LanguageFilter(["en", "xx", "english"])


def test_how_to_install_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    with pytest.raises(UserError, match=r"py3langid: install it with pip .*img2prompt\[language\]"):
        LanguageFilter(["en"])
