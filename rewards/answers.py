"""Is the answer right? One check for each kind of answer, by rule, and the rewards that rest on it.

What counts is what the answer tags enclose, once "the answer is", quotes, bold and boxes around it are gone (`phrases.stated`). It must
be one answer: a second letter, a second number, a hedge, a negation or a justification makes it none, because who writes down every
candidate has not answered. A right answer in a malformed episode earns nothing.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from datetime import date
from enum import IntEnum
from functools import lru_cache

from rewards.earned import Earned
from rewards.findings import Findings
from rewards.format import is_well_formed
from rewards.phrases import names_one_of, same_phrase, stated
from rewards.quantities import parse_date, parse_number, unit_of, within
from tasks.questions import AnswerKind, Question
from trajectories.schema import Episode

# A letter in or out of brackets or bold, then nothing or the option that it names.
_CHOICE = re.compile(
    r"(?:(?:option|choice|answer)\s+(?=\W?[A-N](?!\w)))?(?:\*\*)?[(\[]?\s*([A-N])(?!\w)\s*[)\]]?\s*[.:,;)\-]?\s*(?:\*\*\s*[.:,;)\-]?)?\s*(.*)",
    re.IGNORECASE | re.DOTALL,
)
_KINDS = tuple(kind.value for kind in AnswerKind)


class Verdict(IntEnum):
    """Three levels; for a disease: the one disease, one broader category that contains it, several or none of them."""

    WRONG = 0
    PARTIAL = 1
    RIGHT = 2


def is_correct(question: Question, answer: str) -> bool:
    """Checks an answer by the question's kind.

    Example:
        >>> is_correct(Question(id="q", text="?", kind="choice", gold="B", options={"A": "one", "B": "two"}), "(B) two")
        True
    """
    if question.kind is AnswerKind.CHOICE:
        return is_right_choice(question, answer)
    if question.kind is AnswerKind.NUMBER:
        return is_right_number(question, answer)
    return is_right_text(question, answer)


def is_right_choice(question: Question, answer: str) -> bool:
    """Exactly the gold letter, alone or with the text of its own option; an option's text without its letter is no choice.

    "B", "(b)", "Option B", "B: two" and "The answer is (B) two." are one answer. A letter of another alphabet that looks like B is not B.
    """
    match = _CHOICE.fullmatch(unicodedata.normalize("NFKC", stated(answer)))
    if match is None or match[1].upper() != question.gold:
        return False
    return not match[2] or same_phrase(match[2], question.options[question.gold])


def is_right_number(question: Question, answer: str) -> bool:
    """Within the limits, else within 5 % of the gold value; dates and other gold must be equal once normalised.

    Limits are in the question's unit, or where it names none, in the unit that stands behind its gold value.
    """
    said = stated(answer)
    day = _gold_date(question.gold)
    if day is not None:
        return parse_date(said) == day
    unit = question.unit or unit_of(question.gold)
    gold = parse_number(question.gold, unit)
    if gold is None and (question.lower is None or question.upper is None):
        return same_phrase(said, question.gold)
    value = parse_number(said, unit)
    return value is not None and within(value, gold, question.lower, question.upper)


def is_right_text(question: Question, answer: str) -> bool:
    """The gold phrase or one of its aliases."""
    return names_one_of(stated(answer), (question.gold, *question.aliases))


def verdict_by_rule(question: Question, answer: str) -> Verdict:
    """Right, or for a text that names one of the question's broader categories, partly right; else wrong.

    Example:
        >>> fabry = Question(id="q", text="?", kind="text", gold="Fabry disease", broader=("lysosomal storage disease",))
        >>> [verdict_by_rule(fabry, said).name for said in ("Fabry disease", "a lysosomal storage disease", "Fabry or Gaucher disease")]
        ['RIGHT', 'PARTIAL', 'WRONG']
    """
    if is_correct(question, answer):
        return Verdict.RIGHT
    is_broader = question.kind is AnswerKind.TEXT and names_one_of(stated(answer), question.broader)
    return Verdict.PARTIAL if is_broader else Verdict.WRONG


def correct(question: Question, episode: Episode, findings: Findings) -> Earned:
    """1 for an answer of a well-formed episode that is right by rule, else 0."""
    right, reason = _checked(question, episode)
    return Earned(float(right), reason=reason)


def correct_signed(question: Question, episode: Episode, findings: Findings, *, kinds: Sequence[str] = _KINDS) -> Earned:
    """+1 for a right answer, else −1 (Med-U1, arXiv 2506.12307); 0 for a question that is of none of the `kinds`.

    Leave "text" out of the kinds where `text_overlap` judges texts.
    """
    if isinstance(kinds, str) or not kinds or not set(kinds) <= set(_KINDS):
        raise ValueError(f"kinds must be some of {', '.join(_KINDS)}, got {kinds!r}")
    if question.kind.value not in kinds:
        return Earned(0.0, reason=f"not for {question.kind.value} answers")
    right, reason = _checked(question, episode)
    return Earned(1.0 if right else -1.0, reason=reason)


def outcome(
    question: Question, episode: Episode, findings: Findings, *, right: float = 1.0, partial: float = 0.4, wrong: float = 0.1
) -> Earned:
    """What a right, a partly right and a wrong answer are worth: 1.0, 0.4 and 0.1 in Med-R³ (arXiv 2507.23541).

    Letters and numbers have exact rules, so the judge's verdict counts for texts only, and only where no rule finds the answer right. A
    malformed episode is wrong whatever its answer.
    """
    if not -1 <= wrong <= partial <= right <= 1:
        raise ValueError(f"needs -1 ≤ wrong ≤ partial ≤ right ≤ 1, got wrong {wrong}, partial {partial} and right {right}")
    worth = {Verdict.RIGHT: right, Verdict.PARTIAL: partial, Verdict.WRONG: wrong}
    if not is_well_formed(episode):
        return Earned(wrong, reason="malformed, so no answer counts")
    verdict, source = verdict_by_rule(question, episode.answer), "rule"
    if verdict is not Verdict.RIGHT and question.kind is AnswerKind.TEXT and findings.judged is not None:
        verdict, source = Verdict(findings.judged), "judge"
    return Earned(worth[verdict], reason=f"{verdict.name.lower()} by {source}")


def no_answer(question: Question, episode: Episode, findings: Findings) -> Earned:
    """−1 where the episode gave no answer, in whatever way it ended, else 0."""
    return Earned(0.0) if episode.answer.strip() else Earned(-1.0, reason=f"no answer, ended by {episode.finish or 'nothing'}")


@lru_cache(maxsize=4096)  # every episode of a group asks for one gold
def _gold_date(gold: str) -> date | None:
    return parse_date(gold)


def _checked(question: Question, episode: Episode) -> tuple[bool, str]:
    if not is_well_formed(episode):
        return False, "malformed, so no answer counts"
    right = is_correct(question, episode.answer)
    name = f"letter {question.gold}" if question.kind is AnswerKind.CHOICE else f"{question.gold[:60]!r}"
    return right, f"{name} is {'right' if right else 'the gold answer, another was given'}"
