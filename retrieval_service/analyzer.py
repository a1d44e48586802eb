"""How text becomes tokens. Index and query share this one analyzer, so what was indexed is what can be found.

Medical names are often short or compound: "IL-6", "TNF-α", "vitamin D", "factor V", "type 2". So nothing is dropped for its
length, nothing is stemmed, compounds stay whole, and a single character also counts together with the word before it.
"""

from __future__ import annotations

import re
import unicodedata

NAME = "medical"
VERSION = "1"  # raise it whenever a text may give other tokens: an index built by another version is refused

# All dashes that literature uses inside of names, U+2011 having become U+2010 by NFKC.
_DASHES = dict.fromkeys(map(ord, "\u2010\u2012\u2013\u2014\u2212"), "-")
# Letters and digits of any script, joined by single hyphens, or by a point between digits ("IL-6", "0.5").
_WORD = re.compile(r"[^\W_]+(?:-[^\W_]+|(?<=\d)\.(?=\d)[^\W_]+)*")
# A shorter part of a compound ("il", "6") says too little on its own.
_SHORTEST_PART = 3


def normalise(text: str) -> str:
    """One spelling for texts that differ in case, width, dashes or white space only."""
    return " ".join(unicodedata.normalize("NFKC", text).translate(_DASHES).lower().split())


def words(text: str) -> list[str]:
    """The words in order, compounds whole, nothing added.

    Example:
        >>> words("TNF-α and Vitamin D (0.5 mg)")
        ['tnf-α', 'and', 'vitamin', 'd', '0.5', 'mg']
    """
    return _WORD.findall(normalise(text))


def analyze(text: str) -> list[str]:
    """The tokens for lexical search: the words, the longer parts of compounds, and single characters with the word before.

    Example:
        >>> analyze("IL-6, vitamin D")
        ['il-6', 'vitamin', 'd', 'vitamin d']
        >>> analyze("beta-blocker")
        ['beta-blocker', 'beta', 'blocker']
    """
    tokens: list[str] = []
    previous = ""
    for word in words(text):
        tokens.append(word)
        if "-" in word:
            tokens.extend(part for part in word.split("-") if len(part) >= _SHORTEST_PART)
        if len(word) == 1 and previous:
            tokens.append(f"{previous} {word}")
        previous = word
    return tokens
