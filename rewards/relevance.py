"""What did the searches bring, and does it concern the question? R3-RAG's Rel of a step (arXiv 2505.23794), and of one document.

A step is the searches of one turn with the documents that they brought and that no earlier one had. Rel of a step is 0 … 1: a
judge's where it was asked, else by rule, where a step that brings nothing new is worth 0 either way. A call that looks up no
document, such as a calculation, is no step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from rewards.extraction import Statement, lines_of
from rewards.findings import Findings
from tasks.prompting import strip_tags
from tasks.questions import Question
from trajectories.schema import Episode, Search

Facts = Mapping[tuple[str, str], str]
"""What the references say: (relation, subject) → object."""


@dataclass(frozen=True, slots=True)
class Retrieved:
    """One document that a search brought, under the turn that first brought it. Level 0 is unknown."""

    id: str
    text: str
    level: int
    turn: int


class Step(NamedTuple):
    """The searches of one turn."""

    turn: int
    new: tuple[Retrieved, ...]
    relevance: float
    concerning: tuple[Retrieved, ...]


def retrieves(search: Search) -> bool:
    """Whether it looked for documents, and did not calculate or explain what was wrong with a call."""
    return bool(search.document_ids) or not search.documents


def retrieved(episode: Episode) -> list[Retrieved]:
    """The documents of all searches, each once, as the model saw them: white space normalised, tags removed."""
    found: dict[str, Retrieved] = {}
    for search in episode.searches:
        for name, text, level in zip(search.document_ids, search.documents, search.evidence_levels, strict=False):
            if name not in found:
                found[name] = Retrieved(name, _as_seen(text), level, search.turn)
    return list(found.values())


def steps(question: Question, episode: Episode, findings: Findings) -> list[Step]:
    """Every search step with its Rel and with those of its documents that concern the question: none where Rel is 0."""
    new: dict[int, list[Retrieved]] = {search.turn: [] for search in episode.searches if retrieves(search)}
    for document in retrieved(episode):
        new[document.turn].append(document)
    queries: dict[int, list[str]] = {}
    for search in episode.searches:
        queries.setdefault(search.turn, []).append(search.query)
    facts = {(relation, subject): value for graph in question.reference_graphs for subject, relation, value in graph}
    return [_step(question, turn, queries[turn], found, findings.relevance.get(turn), facts) for turn, found in new.items()]


def relevant(question: Question, episode: Episode, findings: Findings) -> set[Retrieved]:
    """The documents that concern the question."""
    return {document for step in steps(question, episode, findings) for document in step.concerning}


def begins_with(text: str, words: tuple[str, ...]) -> bool:
    """Whether a text begins with these case-folded words."""
    return tuple(text.casefold().split()[: len(words)]) == words


def plain(text: str) -> str:
    """The text with one space for any white space."""
    return " ".join(text.split())


def _step(question: Question, turn: int, queries: list[str], new: list[Retrieved], judged: float | None, facts: Facts) -> Step:
    """A judge has read the documents of a step together, so its word on them holds for each."""
    concerning = new if judged is not None else [document for document in new if _concerns(question, queries, document, facts)]
    by_rule = float(_agrees(concerning, facts) if facts else bool(concerning))
    relevance = judged if judged is not None and new else by_rule
    return Step(turn, tuple(new), relevance, tuple(concerning) if relevance > 0 else ())


def _concerns(question: Question, queries: list[str], document: Retrieved, facts: Facts) -> bool:
    """The rule for one document: it is about a fact of the reference; where there is none, it is gold or on a query's subject."""
    if facts:
        return any((statement.relation, statement.subject) in facts for statement in lines_of(document.text))
    subjects = [words for query in queries if (words := tuple(query.casefold().split()))]
    return document.id in question.gold_documents or any(begins_with(document.text, words) for words in subjects)


def _agrees(documents: Iterable[Retrieved], facts: Facts) -> bool:
    """The rule of the world: some document is about a fact of the reference, and the best about each agrees with it."""
    best: dict[tuple[str, str], tuple[int, bool]] = {}  # of what a document is about: (level, whether it contradicts)
    for document in documents:
        for statement in lines_of(document.text):
            about = statement.relation, statement.subject
            if about in facts:
                told = _rank(document, statement), statement.object != facts[about]
                best[about] = min(best.get(about, told), told)
    return bool(best) and not any(contradicts for _, contradicts in best.values())


def _rank(document: Retrieved, statement: Statement) -> int:
    """The level that the index gives, else the one that the line itself names."""
    return document.level if 1 <= document.level <= 6 else statement.level


@lru_cache(maxsize=4096)  # many components read the same documents, and the episodes of a group find the same ones
def _as_seen(document: str) -> str:
    return plain(strip_tags(document))
