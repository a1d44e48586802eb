"""When are two phrases the same words? Normalisation that forgives spelling habits and keeps what carries meaning."""

from __future__ import annotations

import re
import unicodedata

_GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "κ": "kappa",
    "λ": "lambda", "μ": "mu", "σ": "sigma", "τ": "tau", "ω": "omega",
}  # fmt: skip
_GREEK_LETTER = re.compile(f"[{''.join(_GREEK)}]")
_MARK_ON_LATIN = re.compile(r"([a-z])[\u0300-\u036f]+")
_GROUPED_DIGITS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
# Kept: "+" (CD4+), "%", a point or comma inside a number, a minus that ends a word (CD4-), as each changes the meaning.
_PUNCTUATION = re.compile(r"(?<!\d)[.,]|[.,](?!\d)|(?<!\w)-|-(?=\w)|[^\w\s+%.,\-]|_")
_LEADING_ARTICLE = re.compile(r"^(?:an?|the) (?=\S)")
_THE = re.compile(r"\bthe (?=\S)")


def normalise(text: str) -> str:
    """The words of a phrase without case, accents on Latin letters, articles and empty punctuation.

    An article "a" goes only from the beginning, so that "hepatitis A" and "vitamin A" keep their letter.

    Example:
        >>> normalise("The TNF-α  inhibitor."), normalise("Ménière's disease"), normalise("hepatitis A")
        ('tnf alpha inhibitor', 'menieres disease', 'hepatitis a')
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    text = "".join(character for character in text if unicodedata.category(character) != "Cf")  # zero-width characters
    text = unicodedata.normalize("NFC", _MARK_ON_LATIN.sub(r"\1", unicodedata.normalize("NFD", text)))
    text = text.translate(_ONE_SIGN)
    text = _GROUPED_DIGITS.sub(lambda digits: digits[0].replace(",", ""), text)
    text = _GREEK_LETTER.sub(lambda letter: f" {_GREEK[letter[0]]} ", _PUNCTUATION.sub(" ", text))
    text = " ".join(text.split())
    return _THE.sub("", _LEADING_ARTICLE.sub("", text))


# Dashes of all lengths are one sign; apostrophes vanish, so that "Crohn's" and "Crohns" are one word.
_ONE_SIGN = {**dict.fromkeys(map(ord, "‐‑‒–—−"), "-"), **dict.fromkeys(map(ord, "'’‘`´"), None)}


def same_phrase(answer: str, gold: str) -> bool:
    """Whether two phrases are equal once normalised; a phrase of nothing but punctuation must be equal as it stands."""
    wanted = normalise(gold)
    return normalise(answer) == wanted if wanted else answer.strip() == gold.strip()
