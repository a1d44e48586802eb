"""Is the answer right? One check for each kind of answer."""

from __future__ import annotations

import re
import unicodedata

from rewards.phrases import same_phrase
from rewards.quantities import parse_date, parse_number, within
from tasks.questions import AnswerKind, Question

# A letter in or out of brackets, then nothing or the option that it names.
_CHOICE = re.compile(r"[(\[]?\s*([A-N])(?!\w)\s*[)\]]?\s*[.:,)\-]?\s*(.*)", re.IGNORECASE | re.DOTALL)


def is_correct(question: Question, answer: str) -> bool:
    """Checks an answer by the question's kind.

    Example:
        >>> is_correct(Question(id="q", text="?", kind="choice", gold="B", options={"A": "one", "B": "two"}), "(B) two")
        True
    """
    if not answer.strip():
        return False
    if question.kind is AnswerKind.CHOICE:
        return is_right_choice(question, answer)
    if question.kind is AnswerKind.NUMBER:
        return is_right_number(question, answer)
    return is_right_text(question, answer)


def is_right_choice(question: Question, answer: str) -> bool:
    """Exactly the gold letter, alone or with the text of its own option; an option's text without its letter is no choice."""
    match = _CHOICE.fullmatch(unicodedata.normalize("NFKC", answer).strip())
    if match is None or match[1].upper() != question.gold:
        return False
    return not match[2] or same_phrase(match[2], question.options[question.gold])


def is_right_number(question: Question, answer: str) -> bool:
    """Within the limits, else within 5 % of the gold value; dates and other gold must be equal once normalised."""
    day = parse_date(question.gold)
    if day is not None:
        return parse_date(answer) == day
    gold = parse_number(question.gold, question.unit)
    if gold is None and (question.lower is None or question.upper is None):
        return same_phrase(answer, question.gold)
    value = parse_number(answer, question.unit)
    return value is not None and within(value, gold, question.lower, question.upper)


def is_right_text(question: Question, answer: str) -> bool:
    """The gold phrase or one of its aliases."""
    return any(same_phrase(answer, phrase) for phrase in (question.gold, *question.aliases))
