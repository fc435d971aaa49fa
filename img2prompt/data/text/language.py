"""Filter prompts by language, with py3langid (optional extra `language`).

Chosen among five libraries on 11,696 prompts of DiffusionDB and PartiPrompts and 34 short foreign
ones: the model (a naive Bayes over byte n-grams, Lui and Baldwin 2012) ships in the wheel of 5 MB
under the BSD licence and classifies 16,000 prompts a second. lingua is 96 MB, takes 1.3 GB of
memory and is 30 times slower; CLD2 and fastText are faster, but CLD2 is more often certain and
wrong, and fastText's model has a share-alike licence.
"""

from collections.abc import Sequence

from img2prompt.errors import UserError

CERTAIN = 0.5
"""Least probability of a language, above all others together. Then 55 of the 11,696
prompts are refused as not English, some of them wrongly, and 4 of the 34 foreign ones pass."""


class LanguageFilter:
    """Rejects prompts that are certainly in none of the allowed languages.

    Names and short phrases are uncertain in any language ("mona lisa", "a shiba inu"), so uncertain
    prompts pass.
    """

    def __init__(self, languages: Sequence[str]) -> None:
        """Load the model. `languages` are ISO 639 codes such as `en`.

        Raises:
            UserError: py3langid is not installed, or does not know a language.
        """
        try:
            from py3langid.langid import MODEL_FILE, LanguageIdentifier
        except ImportError:
            raise UserError(
                f"languages {list(languages)} need the package py3langid: install it with "
                "pip install 'img2prompt[language]', or leave --clean.languages empty"
            ) from None
        self._identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        known = set(self._identifier.labels)
        if unknown := sorted(set(languages) - known):
            raise UserError(f"languages has {unknown}; allowed: {', '.join(sorted(known))}")
        self._allowed = frozenset(languages)

    def reason(self, prompt: str) -> str | None:
        """Return `kind: detail` for a prompt in another language; None when it passes."""
        language, probability = self._identifier.classify(prompt)
        if language in self._allowed or probability < CERTAIN:
            return None
        allowed = ", ".join(sorted(self._allowed))
        return f"other language: {language} with probability {probability:.2f}; allowed: {allowed}"
