"""Which part of an episode is the model's own: its words without the documents, its thinking without the queries."""

from __future__ import annotations

from functools import lru_cache

from tasks.prompting import (
    CALL_CLOSE,
    CALL_OPEN,
    DOCUMENT_CLOSE,
    DOCUMENT_OPEN,
    SEARCH_CLOSE,
    SEARCH_OPEN,
    TAGS,
    THINK_CLOSE,
    THINK_OPEN,
)

# A recipe's components read the same episode one after the other; more than the last few texts are never asked for again.
RECENT_TEXTS = 8


def without(text: str, opening: str, closing: str) -> str:
    """The text without its spans between two tags, in linear time; a space stays, so that removal never makes a new tag.

    Example:
        >>> without("a <document> b </document> c", "<document>", "</document>")
        'a   c'
    """
    kept: list[str] = []
    position = 0
    while (start := text.find(opening, position)) >= 0:
        end = text.find(closing, start + len(opening))
        if end < 0:
            break
        kept.append(text[position:start])
        position = end + len(closing)
    return " ".join([*kept, text[position:]])


@lru_cache(maxsize=RECENT_TEXTS)
def own_text(text: str) -> str:
    """A response without the documents that were put into it."""
    return without(text, DOCUMENT_OPEN, DOCUMENT_CLOSE)


@lru_cache(maxsize=RECENT_TEXTS)
def own_thinking(text: str) -> str:
    """What the model itself thought: no document, no query, no call, nothing after the thinking has ended."""
    thought = own_text(text).partition(THINK_CLOSE)[0]
    return without(without(thought, SEARCH_OPEN, SEARCH_CLOSE), CALL_OPEN, CALL_CLOSE).replace(THINK_OPEN, " ")


def tags_in_order(text: str) -> list[str]:
    """Every tag of the protocol in the text, in order of appearance."""
    found = []
    for tag in TAGS:
        start = text.find(tag)
        while start >= 0:
            found.append((start, tag))
            start = text.find(tag, start + 1)
    return [tag for _, tag in sorted(found)]
