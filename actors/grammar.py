"""What one turn of the model says: a search, a call, an answer, or nothing well-formed. Pure, over pieces of text and tags.

```
 START ─<think>─▶ THINK ─</think>─▶ THOUGHT ─<answer>─▶ ANSWER ─</answer>─▶ END
                  │  ▲
         <search> ▼  │ </search>   (the turn ends here; documents follow, and the next turn goes on in THINK)
                 SEARCH             CALL, between <call> and </call>, is its twin
```
Whatever is not drawn is malformed: a document tag written by the model, a tag out of place, an end of text before END.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple

from actors.tokens import END_OF_TEXT, Piece
from tasks.prompting import (
    ANSWER_CLOSE,
    ANSWER_OPEN,
    CALL_CLOSE,
    CALL_OPEN,
    SEARCH_CLOSE,
    SEARCH_OPEN,
    THINK_CLOSE,
    THINK_OPEN,
)


class Place(StrEnum):
    """Where in the drawing the model is."""

    START = "start"
    THINK = "think"
    SEARCH = "search"
    CALL = "call"
    THOUGHT = "thought"
    ANSWER = "answer"
    END = "end"


class Meaning(StrEnum):
    """What a whole turn amounts to. OPEN: well-formed so far, but nothing was completed."""

    SEARCH = "search"
    CALL = "call"
    ANSWER = "answer"
    MALFORMED = "malformed"
    OPEN = "open"


class Turn(NamedTuple):
    """A turn's meaning, the query, call or answer that it carries, and where the model stands after it."""

    meaning: Meaning
    content: str
    place: Place


_STEPS = {
    (Place.START, THINK_OPEN): Place.THINK,
    (Place.THINK, SEARCH_OPEN): Place.SEARCH,
    (Place.SEARCH, SEARCH_CLOSE): Place.THINK,
    (Place.THINK, CALL_OPEN): Place.CALL,
    (Place.CALL, CALL_CLOSE): Place.THINK,
    (Place.THINK, THINK_CLOSE): Place.THOUGHT,
    (Place.THOUGHT, ANSWER_OPEN): Place.ANSWER,
    (Place.ANSWER, ANSWER_CLOSE): Place.END,
}
_WORDS_ALLOWED = frozenset({Place.THINK, Place.SEARCH, Place.CALL, Place.ANSWER})
_COMPLETES = {SEARCH_CLOSE: Meaning.SEARCH, CALL_CLOSE: Meaning.CALL, ANSWER_CLOSE: Meaning.ANSWER}

# What the protocol writes to bring a model that must answer now to the opening of its answer. Where the thinking is closed
# already, nothing needs to be written: the model is on its way.
FORCED = {
    Place.START: f"{THINK_OPEN} {THINK_CLOSE} {ANSWER_OPEN}",
    Place.THINK: f"{THINK_CLOSE} {ANSWER_OPEN}",
    Place.SEARCH: f"{SEARCH_CLOSE} {THINK_CLOSE} {ANSWER_OPEN}",
    Place.CALL: f"{CALL_CLOSE} {THINK_CLOSE} {ANSWER_OPEN}",
}


def read_turn(pieces: Iterable[Piece], place: Place) -> Turn:
    """Walks the drawing from `place`. Only white space may follow what is completed, and the end of text an answer.

    A turn may be cut in the middle of a tag that takes several tokens: what could still become the next tag is no word.

    Example:
        >>> tags = [Piece(tag, True) for tag in ("<think>", "<search>", "</search>")]
        >>> read_turn([*tags[:2], Piece(" drug dose ", False), tags[2]], Place.START)
        Turn(meaning=<Meaning.SEARCH: 'search'>, content='drug dose', place=<Place.THINK: 'think'>)
        >>> read_turn([Piece("<thi", False)], Place.START).meaning.value, read_turn([Piece("thi", False)], Place.START).meaning.value
        ('open', 'malformed')
    """
    content = ""
    done: Meaning | None = None
    all_pieces = list(pieces)
    for number, piece in enumerate(all_pieces, 1):
        if not piece.is_tag:
            words = piece.text.strip()
            unfinished = done is None and number == len(all_pieces) and _begins_a_step(words, place)
            if words and not unfinished and (done is not None or place not in _WORDS_ALLOWED):
                return Turn(Meaning.MALFORMED, "", place)
            if done is None:
                content = words
            continue
        if place is Place.END and piece.text == END_OF_TEXT:
            continue
        following = _STEPS.get((place, piece.text)) if done is None else None
        if following is None:
            return Turn(Meaning.MALFORMED, "", place)
        done = _COMPLETES.get(piece.text)
        if done is not None and not content:
            return Turn(Meaning.MALFORMED, "", place)
        place = following
        content = content if done is not None else ""
    return Turn(done or Meaning.OPEN, content if done is not None else "", place)


def _begins_a_step(words: str, place: Place) -> bool:
    return any(at is place and tag.startswith(words) for at, tag in _STEPS)
