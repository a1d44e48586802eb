"""The oracle as a teacher: it knows the way that a question goes, but says only what its searches really brought.

It stands where an engine stands: the protocol asks it for turns, its queries go to the searcher, and a document that does not come up
is not read. So its episodes are such as a perfect reader of this very index would produce, and where retrieval misses, it fails.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from actors.engine import Completion
from tasks.atlas.language import PUBLICATION_TYPES
from tasks.graph.knowledge import Statement, is_literal
from tasks.graph.wording import mentions, phrase_of, sentence, statements_in, weight_in
from tasks.prompting import ANSWER_CLOSE, ANSWER_OPEN, SEARCH_CLOSE, SEARCH_OPEN, THINK_CLOSE, THINK_OPEN, question_prompt
from tasks.questions import AnswerKind, Question
from trajectories.schema import VersionSpan

_SEARCH = re.compile(re.escape(SEARCH_OPEN) + r"(.*?)" + re.escape(SEARCH_CLOSE), re.DOTALL)
_DOCUMENT = re.compile(r"<document>(.*?)</document>", re.DOTALL)
UNKNOWN = "unknown"  # what it answers where its searches did not bring what it needs
MOST_STEPS = 9  # searches that it plans: below the ten that the filters allow, so that one may fail


class Scribe(Protocol):
    """Text to the numbers that the protocol runs on, and back."""

    def encode(self, text: str, add_special_tokens: bool = ...) -> list[int]: ...

    def decode(self, token_ids: Sequence[int], **_: Any) -> str: ...


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to find out: what is searched for first, in other words then, and what it should bring."""

    queries: tuple[str, str]
    wanted: Statement


class OraclePolicy:
    """Writes the turns of questions that were `added`."""

    def __init__(self, scribe: Scribe, phrases: Mapping[str, str]) -> None:
        self._scribe, self._phrases = scribe, phrases
        self._questions: dict[str, Question] = {}

    def add(self, question: Question) -> None:
        self._questions[question_prompt(question)] = question

    async def generate(
        self,
        request_id: str,
        prompt_ids: Sequence[int],
        *,
        max_tokens: int,
        temperature: float,
        seed: int,
        stop_token_ids: Sequence[int],
        stop_strings: Sequence[str] = (),
        forbidden_token_ids: Sequence[int] = (),
    ) -> Completion:
        question = self._questions[self._scribe.decode(prompt_ids[:1])]
        ids = self._scribe.encode(self.turn(question, self._scribe.decode(prompt_ids[1:])))[:max_tokens]
        return Completion(ids, [0.0] * len(ids), [VersionSpan(0, 0, 0, len(ids))])

    def turn(self, question: Question, so_far: str) -> str:
        """What comes next, given all that was written and found before."""
        found = [[text.strip() for text in _DOCUMENT.findall(part)] for part in so_far.split(SEARCH_CLOSE)[1:]]
        searched = len(_SEARCH.findall(so_far))
        words = [] if so_far else [THINK_OPEN]
        at = 0
        for step in plan(question, self._phrases):
            for query in step.queries:
                if at == searched:
                    return " ".join([*words, self._looks_up(step), f"{SEARCH_OPEN} {query} {SEARCH_CLOSE}"])
                texts, at = found[at], at + 1
                words = [self._reads(step, texts)] if at == searched else words
                if self._stands_in(step, texts):
                    break
            else:
                return " ".join([*words, THINK_CLOSE, f"{ANSWER_OPEN} {UNKNOWN} {ANSWER_CLOSE}"])
        return " ".join([*words, self._concludes(question)])

    def _stands_in(self, step: Step, texts: Sequence[str]) -> bool:
        """Whether a reader of these documents would take what is wanted for true: nothing stronger says otherwise."""
        levels = self._levels(step, texts)
        return step.wanted.object in levels and levels[step.wanted.object] == min(levels.values())

    def _levels(self, step: Step, texts: Sequence[str]) -> dict[str, int]:
        """What the documents say of the step's subject, each with the place of its strongest kind of study, 0 for the best."""
        levels: dict[str, int] = {}
        for text in texts:
            opening = text.partition("\n")[0]
            level = next((place for place, kind in enumerate(PUBLICATION_TYPES) if kind in opening), len(PUBLICATION_TYPES))
            for stated in statements_in(text, "", [step.wanted.relation], self._phrases):
                if stated.subject == step.wanted.subject:
                    levels[stated.object] = min(level, levels.get(stated.object, level))
        return levels

    def _looks_up(self, step: Step) -> str:
        return f"I look for: {step.queries[0]}."

    def _reads(self, step: Step, texts: Sequence[str]) -> str:
        """What the last search brought on the step, and on whose word it is taken."""
        if not self._stands_in(step, texts):
            return "That did not bring it, so I search in other words."
        levels = self._levels(step, texts)
        said = sentence(step.wanted, self._phrases)
        if len(levels) == 1 or levels[step.wanted.object] == len(PUBLICATION_TYPES):
            return said
        return f"The documents disagree, and the strongest of them is a {PUBLICATION_TYPES[levels[step.wanted.object]]}. {said}"

    def _concludes(self, question: Question) -> str:
        answer = question.gold
        if question.kind is AnswerKind.NUMBER:
            dose, weight = question.reference_graphs[0][-1][2], weight_in(question.text)
            answer = f"{question.gold} {question.unit}".strip()
            return f"{weight} * {dose} = {question.gold}. {THINK_CLOSE} {ANSWER_OPEN} {answer} {ANSWER_CLOSE}"
        return f"So it is {answer}. {THINK_CLOSE} {ANSWER_OPEN} {answer} {ANSWER_CLOSE}"


def plan(question: Question, phrases: Mapping[str, str]) -> list[Step]:
    """The searches that a question takes, each by a name that is known by then. Rough values are checked where calls are left."""
    triples = question.reference_graphs[0]
    rough = [place for place, (_, _, o) in enumerate(triples) if is_literal(o) and not _is_asked(question, place)]
    dropped = set(rough[: max(0, len(triples) - MOST_STEPS)])
    known = {name for s, _, o in triples for name in (s, o) if mentions(question.text, name)} - {question.gold}
    steps = []
    for place, (subject, relation, object_) in enumerate(triples):
        if place in dropped:
            continue
        phrase = phrase_of(relation, phrases)
        forwards = subject in known
        query = f"{subject} {phrase}" if forwards else f"{phrase} {object_}"
        known |= {subject, object_}
        name = subject if forwards else object_
        steps.append(Step((query, f"studies of {name}: {phrase}"), Statement(subject, relation, object_, "")))
    return steps


def _is_asked(question: Question, place: int) -> bool:
    return question.kind is AnswerKind.NUMBER and place == len(question.reference_graphs[0]) - 1
