"""Text of a model, of documents or of users, made harmless for a terminal."""

from __future__ import annotations

import unicodedata

# Control, format (which reorders what stands beside it), surrogate, private, unassigned, and the separators that break a line.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def plain(text: str) -> str:
    """Every character that a terminal would obey rather than show, as the escape that names it; lines and tabs stay.

    Example:
        >>> plain("a\\x1b[31mb\\u202ec\\n")
        'a\\\\x1b[31mb\\\\u202ec\\n'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(character if character in "\n\t" else _shown(character) for character in text)


def plain_line(text: str) -> str:
    """The same on one line."""
    return plain(text).replace("\n", "\\n").replace("\t", "\\t")


def _shown(character: str) -> str:
    if unicodedata.category(character) not in _HIDDEN:
        return character
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
