"""What a question asks, as statements with blanks, and who fits the blanks: the check that there is exactly one answer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tasks.graph.knowledge import KnowledgeGraph, Statement
from tasks.graph.vagueness import vague

MOST_CANDIDATES = 20_000  # for one blank: a question with so many is no question, and looking on would take seconds


@dataclass(frozen=True, slots=True)
class Blank:
    """An entity or a value that the question does not name; `kind` may be empty."""

    number: int
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Vague:
    """A number or a date that the question gives roughly, such as 'the late 1980s'."""

    words: str


Term = str | Blank | Vague


@dataclass(frozen=True, slots=True)
class Clue:
    """A statement with blanks in it."""

    subject: Term
    relation: str
    object: Term


class Source(Protocol):
    """Where statements hold: a knowledge graph, or what some documents say."""

    def objects(self, subject: str, relation: str) -> set[str]: ...

    def subjects(self, relation: str, object_: str) -> set[str]: ...

    def roughly(self, relation: str, words: str) -> set[str]:
        """Subjects whose value, said roughly, is these words."""
        ...

    def is_a(self, name: str, kind: str) -> bool: ...


class TooMany(Exception):
    """More candidates than anybody could tell apart."""


def answers(clues: Sequence[Clue], asked: Blank, source: Source) -> set[str]:
    """All that fits the blank asked for. The clues must hang together as a tree; a blank that nothing bounds raises TooMany.

    Example:
        >>> facts = Told([Statement("Fabry disease", "caused by", "GLA", "d1"), Statement("GLA", "maps to", "Xq22", "d2")])
        >>> gene, place = Blank(1), Blank(2)
        >>> answers([Clue("Fabry disease", "caused by", gene), Clue(gene, "maps to", place)], place, facts)
        {'Xq22'}
    """
    return _fitting(tuple(clues), asked, None, source)


def _fitting(clues: tuple[Clue, ...], blank: Blank, came_by: Clue | None, source: Source) -> set[str]:
    """What fits a blank by all clues but the one that it was reached by; of a tree, each clue is looked at once."""
    found: set[str] | None = None
    # Names first, then blanks, then what is said roughly, which fits most: sets only shrink.
    for clue in sorted(
        (c for c in clues if c is not came_by and blank in (c.subject, c.object)), key=lambda c: _width(c, blank)
    ):
        fits = _by_clue(clues, clue, blank, source, found)
        found = fits if found is None else found & fits
        if len(found) > MOST_CANDIDATES:
            raise TooMany
    if found is None:
        raise TooMany
    return {name for name in found if source.is_a(name, blank.kind)} if blank.kind else found


def _width(clue: Clue, blank: Blank) -> int:
    other = clue.object if clue.subject == blank else clue.subject
    return 0 if isinstance(other, str) else 1 if isinstance(other, Blank) else 2


def _by_clue(clues: tuple[Clue, ...], clue: Clue, blank: Blank, source: Source, known: set[str] | None) -> set[str]:
    forward = clue.subject == blank  # the blank is the subject
    other = clue.object if forward else clue.subject
    if isinstance(other, Vague):
        if known is not None:
            return {name for name in known if any(vague(value) == other.words for value in source.objects(name, clue.relation))}
        return source.roughly(clue.relation, other.words)
    names = {other} if isinstance(other, str) else _fitting(clues, other, clue, source)
    fits: set[str] = set()
    for name in names:
        fits |= source.subjects(clue.relation, name) if forward else source.objects(name, clue.relation)
        if len(fits) > MOST_CANDIDATES:
            raise TooMany
    return fits


class Told:
    """What some statements say, by dictionary; they have no types."""

    def __init__(self, statements: Iterable[Statement]) -> None:
        self._objects: dict[tuple[str, str], set[str]] = defaultdict(set)
        self._subjects: dict[tuple[str, str], set[str]] = defaultdict(set)
        self._roughly: dict[tuple[str, str], set[str]] = defaultdict(set)
        for each in statements:
            self._objects[each.subject, each.relation].add(each.object)
            self._subjects[each.relation, each.object].add(each.subject)
            self._roughly[each.relation, vague(each.object)].add(each.subject)

    def objects(self, subject: str, relation: str) -> set[str]:
        return self._objects.get((subject, relation), set())

    def subjects(self, relation: str, object_: str) -> set[str]:
        return self._subjects.get((relation, object_), set())

    def roughly(self, relation: str, words: str) -> set[str]:
        return self._roughly.get((relation, words), set())

    def is_a(self, name: str, kind: str) -> bool:
        return True


class InGraph:
    """What a knowledge graph says, without a copy of its million edges."""

    def __init__(self, graph: KnowledgeGraph) -> None:
        self._graph = graph
        self._relations = {name: number for number, name in enumerate(graph.relations)}
        self._vague: dict[tuple[str, str], set[str]] | None = None

    def objects(self, subject: str, relation: str) -> set[str]:
        node = self._graph.numbers.get(subject)
        if node is None:
            return set()
        values = {stated.object for stated in self._graph.attributes.get(node, ()) if stated.relation == relation}
        return values | self._linked(node, relation, outwards=True)

    def subjects(self, relation: str, object_: str) -> set[str]:
        node = self._graph.numbers.get(object_)
        return set() if node is None else self._linked(node, relation, outwards=False)

    def roughly(self, relation: str, words: str) -> set[str]:
        if self._vague is None:
            self._vague = defaultdict(set)
            for stated in (each for values in self._graph.attributes.values() for each in values):
                self._vague[stated.relation, vague(stated.object)].add(stated.subject)
        return self._vague.get((relation, words), set())

    def is_a(self, name: str, kind: str) -> bool:
        node = self._graph.numbers.get(name)
        return node is None or self._graph.types[node] == kind

    def _linked(self, node: int, relation: str, *, outwards: bool) -> set[str]:
        graph, wanted = self._graph, self._relations.get(relation, -1)
        edges = graph.incident(node)
        if len(edges) > MOST_CANDIDATES:
            raise TooMany
        edges = edges[graph.relations_e[edges] == wanted]
        here, there = (graph.subjects_e, graph.objects_e) if outwards else (graph.objects_e, graph.subjects_e)
        return {graph.names[other] for other in there[edges[here[edges] == node]]}
