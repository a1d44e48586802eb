"""Multiple choice asked openly: only where the answer stands by itself and no other option is needed to find it (Med-R³)."""

from __future__ import annotations

import re

from tasks.questions import AnswerKind, Question

# Stems that ask about the options themselves, and options that speak of other options.
_NEEDS_OPTIONS = re.compile(
    r"\b(?:which|what|all|one|any|each|none)\s+(?:one\s+)?of\s+(?:the|these)\s+(?:following|options|above|below|statements|choices)\b|\bfollowing\b"
    r"|\bexcept\b|\b(?:not|least|incorrect|false|true)\b|\bbest\s+(?:describes|completes)\b|_{3,}",
    re.IGNORECASE,
)
_SPEAKS_OF_OTHERS = re.compile(
    r"\b(?:all|none|both|neither|any)\b.*\b(?:above|these|those|following|options)\b|^\(?[A-N]\)?\s*(?:,|and|&|or)\s*\(?[A-N]\b",
    re.IGNORECASE,
)
LONGEST_ANSWER = 12  # words: a whole sentence can be right in too many other words


def as_open(question: Question) -> Question | None:
    """The question without its options, its gold option as the answer; None where the answer would not be unique.

    Example:
        >>> asked = Question(id="q", text="What causes Fabry disease?", kind="choice", gold="A", options={"A": "GLA", "B": "GBA"})
        >>> as_open(asked).gold, as_open(asked.model_copy(update={"text": "Which of the following causes it?"}))
        ('GLA', None)
    """
    if question.kind is not AnswerKind.CHOICE or not question.options:
        return None
    answer = question.options[question.gold].strip().rstrip(".")
    others = [option for letter, option in question.options.items() if letter != question.gold]
    if _NEEDS_OPTIONS.search(question.text) or any(_SPEAKS_OF_OTHERS.search(option) for option in question.options.values()):
        return None
    if not 0 < len(answer.split()) <= LONGEST_ANSWER or answer.casefold() in question.text.casefold():
        return None
    if any(answer.casefold() in other.casefold() or other.casefold() in answer.casefold() for other in others):
        return None  # one option is a part of another: openly, either would do
    fields = question.model_dump() | {"id": f"{question.id}/open", "kind": AnswerKind.TEXT, "gold": answer, "options": {}}
    return Question.model_validate(fields)
