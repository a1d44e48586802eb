"""When are two phrases the same words? Normalisation that forgives spelling habits and keeps what carries meaning."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

# Deeper wrapping than **\boxed{"…"}** is no habit of writing; the bound keeps hostile answers linear.
MAX_WRAPPERS = 4

_WRAPPERS = (
    ("**", "**"), ("__", "__"), ("\\boxed{", "}"), ("\\text{", "}"), ("$", "$"), ("`", "`"), ('"', '"'), ("“", "”"),
    ("'", "'"), ("‘", "’"),
)  # fmt: skip
_LEAD_IN = re.compile(
    r"(?:so |thus,? |therefore,? )?(?:the |my )?(?:final |correct |best |right )?(?:answer|diagnosis|option|choice)(?: is:? ?| ?[:=] ?)"
    r"|答案(?:是|为|[:：]) ?",
    re.IGNORECASE,
)
# These make letters appear in another order than they are stored, so that a reader and a program see different answers.
_REORDERED = re.compile("[\u202d\u202e]")

_GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "κ": "kappa",
    "λ": "lambda", "μ": "mu", "σ": "sigma", "τ": "tau", "ω": "omega",
}  # fmt: skip
_GREEK_NAMES = {ord(letter): f" {name} " for letter, name in _GREEK.items()}
_SIGNS = {
    **dict.fromkeys(map(ord, "‐‑‒–—−"), "-"),  # dashes of all lengths are one sign
    **dict.fromkeys(map(ord, "'’‘`´®™©°"), None),  # "Crohn's" and "Crohns" are one word
    ord("æ"): "ae",
    ord("œ"): "oe",
    ord("↑"): " increased ",
    ord("↓"): " decreased ",
}
# The strokes U+0334 to U+0338 are no accents: a struck-out word says the opposite of the word.
_MARK_ON_LATIN = re.compile(r"([a-z])[\u0300-\u0333\u0339-\u036f]+")
_GROUPED_DIGITS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
# 10⁵ is no 105, which compatibility normalisation would make of it.
_POWER = re.compile("(?<=[0-9])([⁺⁻]?[⁰¹²³⁴-⁹]+)")
_SPACED_SLASH = re.compile(r"(?<=\d)(?: /|/ | / )(?=\d)")
# Kept: "%", a point, comma or slash inside a number, a minus that begins a number (-2.5) or ends a word (CD4-), as each changes the
# meaning.
_PUNCTUATION = re.compile(r"(?<!\d)[.,/]|[.,/](?!\d)|(?<!\w)-(?!\d)|(?<=\w)-(?=\w)|[^\w\s%.,/\-]|_")
_AFTER_COMPARISON = re.compile(r"(?<=[<>≤≥]) ")
# British spellings as American ones; no two medical words are told apart by them alone.
_SPELLINGS = (
    (re.compile(r"(?<=[a-z])[ao]e(?=[a-z])|\boe(?=[a-z])"), "e"),  # anaemia, oedema
    (re.compile(r"(?<=[blmv])our(?=s?\b|ed\b)"), "or"),  # tumour
    (re.compile(r"(?<=[a-z])([bt])re(?=s?\b)"), r"\1er"),  # fibre, goitre
    (re.compile(r"\bsulph"), "sulf"),  # sulphonamide
)
_ROMAN = {
    numeral: str(value)
    for value, numeral in enumerate(
        ["i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x", "xi", "xii", "xiii"], start=1
    )  # factor XIII is the last
}
_NUMBERED = re.compile(rf"\b(class|factor|grade|phase|stage|type) ({'|'.join(_ROMAN)})\b")
_LEADING_ARTICLE = re.compile(r"^(?:an|the) (?=\S)")
_LEADING_A = re.compile(r"\W*(a)\s+(\S+)", re.IGNORECASE)
_SHORTEST_AFTER_ARTICLE = 3  # letters: behind a letter with a meaning of its own stand signs and single letters
_THE = re.compile(r"\bthe (?=\S)")
_GLOSSED = re.compile(r"([^()]+)\(([^()]+)\)[\s.]*")


def stated(answer: str) -> str:
    """What an answer states once "the answer is", quotes, bold and boxes around it are gone; "" where its order is forged.

    Example:
        >>> stated("The final answer is **(B)**"), stated(r"\\boxed{42}"), stated("not B")
        ('(B)', '42', 'not B')
    """
    if _REORDERED.search(answer):
        return ""
    text = visible(answer).strip()
    for _ in range(MAX_WRAPPERS):
        inner = _unwrapped(text)
        if inner == text:
            break
        text = inner
    return text


def _unwrapped(text: str) -> str:
    lead_in = _LEAD_IN.match(text)
    text = text[lead_in.end() :] if lead_in else text
    for opening, closing in _WRAPPERS:
        if text.startswith(opening) and text.endswith(closing) and len(text) > len(opening + closing):
            return text[len(opening) : -len(closing)].strip()
    return text


def visible(text: str) -> str:
    """A text without its zero-width and direction characters."""
    return text if text.isascii() else "".join(sign for sign in text if unicodedata.category(sign) != "Cf")


def normalise(text: str) -> str:
    """The words of a phrase without case, accents on Latin letters, articles, empty punctuation and British spelling.

    An article "a" goes only from the beginning and from before a word, so that "hepatitis A" and "Aβ" keep their letter. Symbols
    stay: "<5 cm", "~5 cm" and "5 cm" are three things.

    Example:
        >>> normalise("The TNF-α  inhibitor."), normalise("Ménière's disease"), normalise("hepatitis A")
        ('tnf alpha inhibitor', 'menieres disease', 'hepatitis a')
        >>> normalise("Anaemia, type II"), normalise("↑ TSH")
        ('anemia type 2', 'increased tsh')
    """
    words = _normalised(text)
    return words.removeprefix("a ") if _begins_with_article(text) else words


def _begins_with_article(text: str) -> bool:
    leading = _LEADING_A.match(text)
    return leading is not None and sum(map(str.isalpha, leading[2])) >= _SHORTEST_AFTER_ARTICLE


def _normalised(text: str) -> str:
    """`normalise`, but for an article "a" at the beginning."""
    text = text.casefold()
    if not text.isascii():
        text = _POWER.sub(r"^\1", text)
        text = visible(unicodedata.normalize("NFKC", text.translate(_SIGNS)).casefold())
        text = unicodedata.normalize("NFC", _MARK_ON_LATIN.sub(r"\1", unicodedata.normalize("NFD", text)))
    text = _GROUPED_DIGITS.sub(lambda digits: digits[0].replace(",", ""), text.translate(_SIGNS))
    text = _SPACED_SLASH.sub("/", text)
    text = " ".join(_PUNCTUATION.sub(_symbol_or_space, text).translate(_GREEK_NAMES).split())
    text = _AFTER_COMPARISON.sub("", text)
    for british, american in _SPELLINGS:
        text = british.sub(american, text)
    text = _NUMBERED.sub(lambda match: f"{match[1]} {_ROMAN[match[2]]}", text)
    return _THE.sub("", _LEADING_ARTICLE.sub("", text))


def same_phrase(answer: str, gold: str) -> bool:
    """Whether two phrases are equal once normalised; a phrase of nothing but punctuation must be equal as it stands."""
    return _gold_key(gold) in _readings(answer)


def names_one_of(answer: str, phrases: Iterable[str]) -> bool:
    """Whether an answer is one of several names of one thing; brackets behind it may hold another of them, or its initials.

    Example:
        >>> names_one_of("myocardial infarction (MI)", ["myocardial infarction"]), names_one_of("MI", ["myocardial infarction"])
        (True, False)
    """
    accepted = {_gold_key(phrase) for phrase in phrases} - {""}
    if _readings(answer) & accepted:
        return True
    glossed = _GLOSSED.fullmatch(answer)
    if glossed is None:
        return False
    names, glosses = map(_readings, glossed.groups())
    initials = {"".join(word[0] for word in name.split()) for name in names}
    return bool(names & accepted and glosses & (accepted | initials))


def _readings(phrase: str) -> frozenset[str]:
    """An answer's words, with and without a first "a" that may be an article: whether it is one, only the gold phrase can tell."""
    return frozenset({_normalised(phrase) or phrase.strip(), normalise(phrase) or phrase.strip()})


@lru_cache(maxsize=4096)
def _gold_key(phrase: str) -> str:
    """Remembered, because the same gold phrases meet every answer of a group; answers are not, for they may be long.

    A capital "A" that a gold phrase begins with is a letter, as in the blood group "A negative".
    """
    return (_normalised(phrase) if phrase.startswith("A ") else normalise(phrase)) or phrase.strip()


def _symbol_or_space(sign: re.Match[str]) -> str:
    return sign[0] if unicodedata.category(sign[0])[0] == "S" else " "
