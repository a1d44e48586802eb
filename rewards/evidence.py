"""How good is what the episode found and leaned on? Only what was really retrieved counts, whatever the model claims."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from rewards.earned import Earned
from rewards.text import own_thinking
from tasks.prompting import strip_tags
from tasks.questions import Question
from trajectories.schema import Episode

# Levels I to VI, from meta-analysis to opinion.
LEVEL_QUALITY = (1.0, 0.8, 0.6, 0.4, 0.2, 0.0)


@dataclass(frozen=True, slots=True)
class Retrieved:
    """One document that a search brought, under the turn that first brought it. Level 0 is unknown."""

    id: str
    text: str
    level: int
    turn: int


def retrieved(episode: Episode) -> list[Retrieved]:
    """The documents of all searches, each once, as the model saw them: white space normalised, tags removed."""
    found: dict[str, Retrieved] = {}
    for search in episode.searches:
        for name, text, level in zip(search.document_ids, search.documents, search.evidence_levels, strict=False):
            found.setdefault(name, Retrieved(name, _plain(strip_tags(text)), level, search.turn))
    return list(found.values())


def cited(episode: Episode) -> list[Retrieved]:
    """The retrieved documents whose whole text stands verbatim in the model's own thinking."""
    thinking = _plain(own_thinking(episode.text))
    return [document for document in retrieved(episode) if _stands_in(document.text, thinking)]


def evidence(question: Question, episode: Episode, *, quality: Sequence[float] = LEVEL_QUALITY, unknown: float = 0.0) -> Earned:
    """Mean quality of the cited documents by their level; 0 if none is cited. A level that is unknown earns `unknown`."""
    table = (unknown, *quality)
    if len(table) != len(LEVEL_QUALITY) + 1 or not all(0 <= value <= 1 for value in table):
        raise ValueError(
            f"needs one quality in [0, 1] for each level from I to VI, got {list(quality)} and {unknown} for unknown"
        )
    return _mean(
        [(document, table[document.level] if 0 <= document.level < len(table) else unknown) for document in cited(episode)]
    )


def evidence_relative(question: Question, episode: Episode) -> Earned:
    """Share of the cited documents that are the best on their subject among the retrieved.

    A document is on the subject of a query when it begins with the query's words. A cited document that is on the subject of no
    query, or whose level is unknown, is never the best.
    """
    found = retrieved(episode)
    subjects = {tuple(search.query.casefold().split()) for search in episode.searches} - {()}
    values = []
    for document in cited(episode):
        rivals = [
            rival.level
            for subject in subjects
            if _begins_with(document.text, subject)
            for rival in found
            if rival.level > 0 and _begins_with(rival.text, subject)
        ]
        values.append((document, float(document.level > 0 and bool(rivals) and document.level == min(rivals))))
    return _mean(values)


def gold_recall(question: Question, episode: Episode) -> Earned:
    """Share of the question's gold documents that some search found; 0 where the question names none."""
    gold = set(question.gold_documents)
    if not gold:
        return Earned(0.0)
    turns: dict[int, float] = defaultdict(float)
    hits = [document for document in retrieved(episode) if document.id in gold]
    for document in hits:
        turns[document.turn] += 1 / len(gold)
    return Earned(len(hits) / len(gold), dict(turns))


def _mean(values: list[tuple[Retrieved, float]]) -> Earned:
    turns: dict[int, float] = defaultdict(float)
    for document, value in values:
        turns[document.turn] += value / len(values)
    return Earned(sum(value for _, value in values) / len(values), dict(turns)) if values else Earned(0.0)


def _plain(text: str) -> str:
    return " ".join(text.split())


def _begins_with(text: str, words: tuple[str, ...]) -> bool:
    return tuple(text.casefold().split()[: len(words)]) == words


def _stands_in(part: str, whole: str) -> bool:
    """Whether the part stands in the whole as words of its own: "dose 4" does not stand in "dose 42"."""
    start = whole.find(part) if part else -1
    while start >= 0:
        before, after = whole[start - 1 : start], whole[start + len(part) : start + len(part) + 1]
        if not (before.isalnum() and part[0].isalnum()) and not (after.isalnum() and part[-1].isalnum()):
            return True
        start = whole.find(part, start + 1)
    return False
