"""Does the answer rest on what the documents say, and on the better of them?

In the fictional world an answer rests on a chain of lines in the thinking: the last line whose object gives the answer, before it
the last line whose object is that one's subject, and so on. For other text the rule is lexical.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import NamedTuple

from rewards.answers import is_right_choice
from rewards.earned import Earned
from rewards.extraction import Claim, claims, last_turn, lines_of, settled_by_rule
from rewards.findings import Findings
from rewards.phrases import normalise, stated
from rewards.quantities import parse_number
from rewards.relevance import retrieved
from tasks.questions import AnswerKind, Question
from trajectories.schema import Episode

_WEIGHT = re.compile(r" for (\d{1,6}) kg")  # the world's dose questions
# Words that stand in every text; an answer gets nothing for them.
_EMPTY_WORDS = frozenset(
    {
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "be",
        "by",
        "for",
        "from",
        "in",
        "is",
        "it",
        "no",
        "not",
        "of",
        "on",
        "or",
        "to",
        "with",
    }
)


class Line(NamedTuple):
    """What a document at hand says of a subject, and its evidence level, 0 where it is unknown."""

    object: str
    level: int


def grounding(question: Question, episode: Episode, findings: Findings) -> Earned:
    """Share of the answer's claims that a document supports, credited to the turn that wrote the claim.

    In the world: the lines that the answer rests on, each verbatim in a retrieved document or in one that came with the question.
    Elsewhere: the largest share of the answer's words that stand in one retrieved document.
    """
    if not episode.answer.strip():
        return Earned(0.0, reason="there is no answer")
    if not settled_by_rule(question):
        return _lexical(question, episode)
    chain = rests_on(question, episode.answer, claims(episode))
    if not chain:
        return Earned(0.0, reason="the answer rests on no line of the thinking")
    texts = [document.text for document in retrieved(episode)] + [document.text for document in question.context]
    lines = {line for text in texts for line in lines_of(text)}
    supported = [claim.turn for claim in chain if claim.statement in lines]
    return _share(supported, len(chain), f"{len(supported)} of {len(chain)} lines under the answer stand in a document")


def contrary_evidence(question: Question, episode: Episode, findings: Findings) -> Earned:
    """− share of the lines under the answer that better evidence at hand contradicts, credited to the turn that wrote the line.

    Contradiction is the same relation and subject with another object, in a document of a better known level than any that
    agrees with the line. It is known in the fictional world only; elsewhere the value is 0.
    """
    chain = rests_on(question, episode.answer, claims(episode)) if episode.answer.strip() else []
    at_hand = _lines_at_hand(question, episode) if chain else {}
    ignored = [claim.turn for claim in chain if _contradicted(claim, at_hand)]
    earned = _share(
        ignored, max(1, len(chain)), f"{len(ignored)} of {len(chain)} lines under the answer ignore better evidence"
    )
    return Earned(0.0 - earned.value, {turn: -share for turn, share in earned.turns.items()}, earned.reason)


def rests_on(question: Question, answer: str, written: list[Claim]) -> list[Claim]:
    """The chain of claims under an answer, first hop first; empty where no line gives the answer.

    Example:
        >>> from rewards.extraction import Statement
        >>> cause = Statement("disease-cause", "dovun", 3, "kawib")
        >>> inhibitor = Statement("gene-inhibitor", "kawib", 1, "muzel")
        >>> question = Question(id="q", text="?", kind="text", gold="muzel")
        >>> [claim.turn for claim in rests_on(question, "muzel", [Claim(0, cause), Claim(1, inhibitor)])]
        [0, 1]
    """
    gives = _giver(question, answer)
    last = next((i for i in reversed(range(len(written))) if gives(written[i].statement.object)), None)
    if last is None:
        return []
    before: dict[str, int] = {}  # object → the last line before that has it
    previous: list[int | None] = []
    for i, claim in enumerate(written[: last + 1]):
        previous.append(before.get(claim.statement.subject))
        before[claim.statement.object] = i
    chain: list[Claim] = []
    at: int | None = last
    while at is not None:
        chain.append(written[at])
        at = previous[at]  # always an earlier line, so the walk ends
    return chain[::-1]


def _giver(question: Question, answer: str) -> Callable[[str], bool]:
    """Whether the answer says an object: as it is, as the letter of its option, or multiplied by the question's weight.

    The answer is read once, for it may be long and the objects many.
    """
    if question.kind is AnswerKind.NUMBER:
        said, weight = parse_number(stated(answer), question.unit), _WEIGHT.search(question.text)
        factor = int(weight[1]) if weight else 1
        return lambda value: said is not None and (unit_dose := parse_number(value)) is not None and unit_dose * factor == said
    chosen = [
        option
        for letter, option in question.options.items()
        if is_right_choice(question.model_copy(update={"gold": letter}), answer)
    ]
    said_phrases = {normalise(phrase) for phrase in (chosen if question.kind is AnswerKind.CHOICE else [stated(answer)])} - {""}
    return lambda value: normalise(value) in said_phrases


def _lines_at_hand(question: Question, episode: Episode) -> dict[tuple[str, str], list[Line]]:
    lines: defaultdict[tuple[str, str], list[Line]] = defaultdict(list)
    documents = [(document.text, document.level) for document in retrieved(episode)]
    documents += [(document.text, document.evidence_level or 0) for document in question.context]
    for text, level in documents:
        for relation, subject, _, value in lines_of(text):
            lines[relation, subject].append(Line(value, level if 1 <= level <= 6 else 0))
    return dict(lines)


def _contradicted(claim: Claim, at_hand: dict[tuple[str, str], list[Line]]) -> bool:
    lines = at_hand.get((claim.statement.relation, claim.statement.subject), [])
    known = [line for line in lines if line.level]
    agreeing = min((line.level for line in known if line.object == claim.statement.object), default=7)
    return any(line.level < agreeing for line in known if line.object != claim.statement.object)


def _lexical(question: Question, episode: Episode) -> Earned:
    """For text that is not the world's: how much of the answer stands in the one document that has most of it."""
    said = stated(episode.answer)
    words = _words(question.options.get(said.strip("()[].").upper(), said))
    if not words:
        return Earned(0.0, reason="the answer has no words")
    share = max((len(words & _words(document.text)) / len(words) for document in retrieved(episode)), default=0.0)
    return Earned(share, {last_turn(episode): share}, f"{share:.2f} of the answer's words stand in one document")


def _words(text: str) -> set[str]:
    return set(normalise(text).split()) - _EMPTY_WORDS


def _share(turns_of_hits: Iterable[int], of: int, reason: str) -> Earned:
    hits = list(turns_of_hits)
    turns: defaultdict[int, float] = defaultdict(float)
    for turn in hits:
        turns[turn] += 1 / of
    return Earned(len(hits) / of, dict(turns), reason)
