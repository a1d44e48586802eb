"""What does the thinking state? Rules for the fictional medical world, whose facts are lines of a fixed form."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from rewards.findings import Findings, Graph, Triple
from rewards.text import own_text
from tasks.prompting import CALL_CLOSE, CALL_OPEN, SEARCH_CLOSE, SEARCH_OPEN, THINK_CLOSE, THINK_OPEN, strip_tags
from tasks.questions import Question
from tasks.vocabulary import LINE_END, PUBLICATION_TYPES, RELATIONS
from tasks.world import SOURCES
from trajectories.schema import Episode, Source

# More steps than any honest chain of thought has; it bounds the work on hostile text.
MAX_TRIPLES = 256
MAX_NAME_CHARACTERS = 200  # the longest systematic names of drugs are shorter

_LEVELS = {name: level for level, name in enumerate(PUBLICATION_TYPES, 1)}
_RELATIONS = frozenset(RELATIONS)


class Statement(NamedTuple):
    """One line of the world: `relation subject publication-type object .`"""

    relation: str
    subject: str
    level: int
    object: str


class Claim(NamedTuple):
    """A statement and the model's turn that wrote it."""

    turn: int
    statement: Statement


def settled_by_rule(question: Question) -> bool:
    """Whether the question is from the fictional world, where rules find out what a judge would be asked."""
    return question.source in SOURCES


def statements(text: str) -> list[Statement]:
    """The whole lines of the world in a text, in order.

    Example:
        >>> statements("so gene-inhibitor kavan rct lozes . and drug-dose lozes cohort")
        [Statement(relation='gene-inhibitor', subject='kavan', level=2, object='lozes')]
    """
    words = text.split()
    return [
        Statement(words[i], words[i + 1], _LEVELS[words[i + 2]], words[i + 3])
        for i in range(len(words) - 4)
        if words[i] in _RELATIONS and words[i + 2] in _LEVELS and words[i + 4] == LINE_END
        if max(len(words[i + 1]), len(words[i + 3])) <= MAX_NAME_CHARACTERS
    ]


@lru_cache(maxsize=4096)  # many components read the same documents, and the episodes of a group find the same ones
def lines_of(document: str) -> tuple[Statement, ...]:
    """The lines of a document as the model saw it, without tags."""
    return tuple(statements(strip_tags(document)))


def last_turn(episode: Episode) -> int:
    """The model's last turn, which holds the answer: every search but the last is followed by one more turn."""
    return max((segment.turn for segment in episode.segments if segment.source == Source.MODEL), default=len(episode.searches))


def thinking_by_turn(episode: Episode) -> list[str]:
    """The model's own thinking, one text for each of its turns, without queries: a search ends a turn, and so does a call."""
    thought = own_text(episode.text).partition(THINK_CLOSE)[0]
    if any(search.tool != "search" for search in episode.searches):  # elsewhere the call tags are ordinary text
        thought = thought.replace(CALL_OPEN, SEARCH_OPEN).replace(CALL_CLOSE, SEARCH_CLOSE)
    pieces = [piece.partition(SEARCH_OPEN)[0].replace(THINK_OPEN, " ") for piece in thought.split(SEARCH_CLOSE)]
    end = last_turn(episode) + 1  # more closing tags than turns is malformed text; what follows them is no turn of its own
    return pieces[:end]


def claims(episode: Episode) -> list[Claim]:
    """The world's lines that the model itself wrote into its thinking; the last ones where there are too many."""
    found = [Claim(turn, statement) for turn, text in enumerate(thinking_by_turn(episode)) for statement in statements(text)]
    return found[-MAX_TRIPLES:]


def graph_of(episode: Episode, findings: Findings) -> Graph:
    """The distinct triples that the thinking states: a judge's where it was asked, else by rule.

    A triple is retrieved where a document of an earlier search states the same fact.
    """
    triples: dict[tuple[str, str, str], Triple] = {}
    if findings.graph is not None:
        for triple in findings.graph[:MAX_TRIPLES]:
            triples.setdefault(triple[:3], triple)
        return tuple(triples.values())
    stated = claims(episode)
    brought = _first_brought(episode) if stated else {}
    for turn, (relation, subject, _, value) in stated:
        fact = (subject, relation, value)
        search, search_turn = brought.get(fact, (turn, None))
        triples.setdefault(fact, Triple(*fact, search_turn if search < turn else None))
    return tuple(triples.values())


def _first_brought(episode: Episode) -> dict[tuple[str, str, str], tuple[int, int]]:
    """Fact → (number of the search that first brought it, that search's turn)."""
    brought: dict[tuple[str, str, str], tuple[int, int]] = {}
    for number, search in enumerate(episode.searches):
        for text in search.documents:
            for relation, subject, _, value in lines_of(text):
                brought.setdefault((subject, relation, value), (number, search.turn))
    return brought
