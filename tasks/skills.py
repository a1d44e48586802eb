"""Which skill a token of a teacher text tests: only tokens that are certain given all before them are probed."""

from __future__ import annotations

from tasks.prompting import ANSWER_CLOSE, ANSWER_OPEN, SEARCH_CLOSE, SEARCH_OPEN
from tasks.vocabulary import LETTERS, LINE_END, RELATIONS

DRILL_SKILLS = ("level", "object_first", "object_second", "dose", "option_second", "letter")
IMITATION_SKILLS = ("object_first", "object_second", "dose", "letter", "query", "answer")

_LETTER_TOKENS = {f"({letter})" for letter in LETTERS}


def classify(tokens: list[str]) -> list[str | None]:
    """The skill of every token of a response, None where the teacher was free to write something else.

    Example:
        >>> classify(["drug-dose", "la", "##van", "rct", "4", "."])
        [None, None, 'subject_second', 'level', 'dose', None]
    """
    skills: list[str | None] = [None] * len(tokens)
    inside_answer = inside_search = False
    since_relation: int | None = None  # tokens since the relation of the line that is being restated
    for i, token in enumerate(tokens):
        if token in (SEARCH_OPEN, SEARCH_CLOSE, ANSWER_OPEN, ANSWER_CLOSE):
            inside_search, inside_answer = token == SEARCH_OPEN, token == ANSWER_OPEN
            since_relation = None
        elif inside_answer:
            skills[i] = "answer"
        elif token in RELATIONS:
            since_relation = 0
        elif inside_search:
            skills[i] = "query"
        elif token in _LETTER_TOKENS:
            skills[i] = "letter"
        elif token == LINE_END:
            since_relation = None
        elif since_relation is not None:
            since_relation += 1
            skills[i] = _within_line(since_relation, token)
        elif token.startswith("##") and not token[2:].isdigit():
            skills[i] = "option_second"
    return skills


def _within_line(place: int, token: str) -> str | None:
    if place == 4 and token.isdigit():
        return "dose"
    return {2: "subject_second", 3: "level", 4: "object_first", 5: "object_second"}.get(place)
