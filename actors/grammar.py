"""What one turn of the model says: a search, an answer, or nothing well-formed. Pure, over pieces of text and tags.

```
 START ─<think>─▶ THINK ─</think>─▶ THOUGHT ─<answer>─▶ ANSWER ─</answer>─▶ END
                  │  ▲
         <search> ▼  │ </search>   (the turn ends here; documents follow, and the next turn goes on in THINK)
                 SEARCH
```
Whatever is not drawn is malformed: a document tag written by the model, a tag out of place, an end of text before END.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple

from actors.tokens import END_OF_TEXT, Piece
from tasks.prompting import ANSWER_CLOSE, ANSWER_OPEN, SEARCH_CLOSE, SEARCH_OPEN, THINK_CLOSE, THINK_OPEN


class Place(StrEnum):
    """Where in the drawing the model is."""

    START = "start"
    THINK = "think"
    SEARCH = "search"
    THOUGHT = "thought"
    ANSWER = "answer"
    END = "end"


class Meaning(StrEnum):
    """What a whole turn amounts to. OPEN: well-formed so far, but neither a search nor an answer was completed."""

    SEARCH = "search"
    ANSWER = "answer"
    MALFORMED = "malformed"
    OPEN = "open"


class Turn(NamedTuple):
    """A turn's meaning, the query or the answer that it carries, and where the model stands after it."""

    meaning: Meaning
    content: str
    place: Place


_STEPS = {
    (Place.START, THINK_OPEN): Place.THINK,
    (Place.THINK, SEARCH_OPEN): Place.SEARCH,
    (Place.SEARCH, SEARCH_CLOSE): Place.THINK,
    (Place.THINK, THINK_CLOSE): Place.THOUGHT,
    (Place.THOUGHT, ANSWER_OPEN): Place.ANSWER,
    (Place.ANSWER, ANSWER_CLOSE): Place.END,
}
_WORDS_ALLOWED = frozenset({Place.THINK, Place.SEARCH, Place.ANSWER})
_COMPLETES = {SEARCH_CLOSE: Meaning.SEARCH, ANSWER_CLOSE: Meaning.ANSWER}


def read_turn(pieces: Iterable[Piece], place: Place) -> Turn:
    """Walks the drawing from `place`. Only white space may follow a completed search or answer, and the end of text an answer.

    Example:
        >>> tags = [Piece(tag, True) for tag in ("<think>", "<search>", "</search>")]
        >>> read_turn([*tags[:2], Piece(" drug dose ", False), tags[2]], Place.START)
        Turn(meaning=<Meaning.SEARCH: 'search'>, content='drug dose', place=<Place.THINK: 'think'>)
    """
    content = ""
    done: Meaning | None = None
    for piece in pieces:
        if not piece.is_tag:
            if piece.text.strip() and (done is not None or place not in _WORDS_ALLOWED):
                return Turn(Meaning.MALFORMED, "", place)
            if done is None:
                content = piece.text.strip()
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
