"""A knowledge graph in memory: entities, statements between them, attributes (numbers and dates), and where each is written down.

The adjacency is one pair of arrays, because a walk looks at few neighbours of a hub: a million edges take 60 MB, and 8 of a node's
200,000 neighbours are drawn without listing the others. rustworkx does what looks at a whole relation, or at a small subgraph.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.graph.triples import BadRow, Triple

# Relations that order their entities, so that a cycle of them is a contradiction. Others may run in circles as they like.
ORDERING = frozenset(
    {
        "isa",
        "is_a",
        "is a",
        "subclass_of",
        "subclass of",
        "part_of",
        "part of",
        "has_parent",
        "inverse_isa",
        "par",
        "chd",
        "rb",
        "rn",
    }
)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


@dataclass(frozen=True, slots=True)
class Statement:
    """One edge or attribute in words, with the document that states it."""

    subject: str
    relation: str
    object: str
    document: str

    @property
    def triple(self) -> tuple[str, str, str]:
        return self.subject, self.relation, self.object


@dataclass
class KnowledgeGraph:
    """Entities and edges by number. Made by `build`; nothing changes it afterwards.

    Example:
        >>> graph, bad = KnowledgeGraph.build([
        ...     Triple("Fabry disease", "caused by", "GLA"), Triple("GLA", "caused by", "GLA", file="g.csv", row=3)])
        >>> len(graph.names), str(bad[0])
        (2, 'g.csv, row 3: is a self-loop of GLA')
    """

    names: list[str]
    types: list[str]
    specialties: list[str]
    relations: list[str]
    subjects_e: NDArray[np.int32]
    relations_e: NDArray[np.int32]
    objects_e: NDArray[np.int32]
    documents_e: list[str]
    attributes: dict[int, list[Statement]]  # by entity: its numbers and dates
    numbers: dict[str, int]
    _offsets: NDArray[np.int64] = field(repr=False)
    _incident: NDArray[np.int32] = field(repr=False)

    @classmethod
    def build(cls, rows: Iterable[Triple | BadRow]) -> tuple[KnowledgeGraph, list[BadRow]]:
        """The graph of the good rows, and the bad ones: blank, self-loop, duplicate, or closing a cycle of an ordering relation."""
        draft = _Draft()
        for row in rows:
            if isinstance(row, BadRow):
                draft.bad.append(row)
            else:
                draft.add(row)
        draft.drop_cycles()
        return draft.graph(), sorted(draft.bad, key=lambda bad: (bad.file, bad.row))

    def __len__(self) -> int:
        return len(self.subjects_e)

    def incident(self, node: int) -> NDArray[np.int32]:
        """The edges that begin or end at an entity."""
        found: NDArray[np.int32] = self._incident[self._offsets[node] : self._offsets[node + 1]]
        return found

    def degree(self, node: int) -> int:
        return int(self._offsets[node + 1] - self._offsets[node])

    def ends(self, edge: int) -> tuple[int, int]:
        return int(self.subjects_e[edge]), int(self.objects_e[edge])

    def other(self, edge: int, node: int) -> int:
        subject, object_ = self.ends(edge)
        return object_ if subject == node else subject

    def some_incident(self, node: int, most: int, rng: random.Random) -> list[int]:
        """At most so many of an entity's edges, drawn without listing the rest of a hub's."""
        low, high = int(self._offsets[node]), int(self._offsets[node + 1])
        places = range(low, high) if high - low <= most else sorted(rng.sample(range(low, high), most))
        return [int(self._incident[place]) for place in places]

    def statement(self, edge: int) -> Statement:
        subject, object_ = self.ends(edge)
        relation = self.relations[self.relations_e[edge]]
        return Statement(self.names[subject], relation, self.names[object_], self.documents_e[edge])

    def statements(self) -> Iterator[Statement]:
        """Every edge, then every attribute."""
        for edge in range(len(self)):
            yield self.statement(edge)
        for node in sorted(self.attributes):
            yield from self.attributes[node]

    def rare(self, below: int, frequency: Mapping[int, int] | None = None) -> list[int]:
        """Entities that stand in at least one but fewer than so many documents; without a corpus, the graph's own documents count."""
        counted = self.own_frequency() if frequency is None else frequency
        return [node for node in range(len(self.names)) if 0 < counted.get(node, 0) < below and self.degree(node)]

    def own_frequency(self) -> Counter[int]:
        """In how many of the statements' documents an entity stands."""
        seen: dict[int, set[str]] = defaultdict(set)
        for edge in range(len(self)):
            document = self.documents_e[edge] or f"edge {edge}"  # without provenance, every statement counts
            for node in self.ends(edge):
                seen[node].add(document)
        return Counter({node: len(documents) for node, documents in seen.items()})


class _Draft:
    """What `build` has read so far."""

    def __init__(self) -> None:
        self.bad: list[BadRow] = []
        self._names: dict[str, int] = {}
        self._types: list[str] = []
        self._specialties: list[str] = []
        self._relations: dict[str, int] = {}
        self._subjects: list[int] = []
        self._objects: list[int] = []
        self._of: list[int] = []  # relations
        self._documents: list[str] = []
        self._origin: list[tuple[str, int]] = []
        self._first: dict[
            int, str
        ] = {}  # the document of an edge, which is three numbers in one: sets of a million would be 300 MB
        self._further: set[tuple[int, str]] = set()
        self._attributes: dict[int, list[Statement]] = {}
        self._stated: set[tuple[int, str, str, str]] = set()

    def add(self, triple: Triple) -> None:
        if triple.subject.casefold() == triple.object.casefold():
            self.bad.append(BadRow(triple.file, triple.row, f"is a self-loop of {triple.subject}"))
            return
        subject = self._entity(triple.subject, triple.subject_type, triple.specialty)
        if is_literal(triple.object):
            self._attribute(subject, triple)
            return
        object_ = self._entity(triple.object, triple.object_type, triple.specialty)
        relation = self._relations.setdefault(triple.relation, len(self._relations))
        edge = (subject << 64) | (relation << 32) | object_
        if edge in self._first:
            if triple.document == self._first[edge] or (edge, triple.document) in self._further:
                self.bad.append(BadRow(triple.file, triple.row, f"is a duplicate: {_shown(triple)} stands before it"))
            self._further.add((edge, triple.document))
            return  # the same from another document is more evidence, not another edge
        self._first[edge] = triple.document
        self._subjects.append(subject)
        self._objects.append(object_)
        self._of.append(relation)
        self._documents.append(triple.document)
        self._origin.append((triple.file, triple.row))

    def _attribute(self, subject: int, triple: Triple) -> None:
        key = (subject, triple.relation, triple.object, triple.document)
        if key in self._stated:
            self.bad.append(BadRow(triple.file, triple.row, f"is a duplicate: {_shown(triple)} stands before it"))
            return
        self._stated.add(key)
        stated = Statement(triple.subject, triple.relation, triple.object, triple.document)
        self._attributes.setdefault(subject, []).append(stated)

    def _entity(self, name: str, kind: str, specialty: str) -> int:
        number = self._names.setdefault(name, len(self._names))
        if number == len(self._types):
            self._types.append(kind)
            self._specialties.append(specialty)
        self._types[number] = self._types[number] or kind
        self._specialties[number] = self._specialties[number] or specialty
        return number

    def drop_cycles(self) -> None:
        """Of every ordering relation, the rows that close a cycle, in the order of the file."""
        import rustworkx as rx

        dropped: set[int] = set()
        for name, relation in self._relations.items():
            if name.casefold() not in ORDERING:
                continue
            edges = [edge for edge, of in enumerate(self._of) if of == relation]
            whole = rx.PyDiGraph()
            whole.add_nodes_from(range(len(self._names)))
            whole.add_edges_from_no_data([(self._subjects[edge], self._objects[edge]) for edge in edges])
            component = {
                node: place
                for place, nodes in enumerate(rx.strongly_connected_components(whole))
                if len(nodes) > 1
                for node in nodes
            }
            dropped |= set(self._closing(edges, component))
        if dropped:
            lists: list[list[Any]] = [self._subjects, self._objects, self._of, self._documents, self._origin]
            for values in lists:
                values[:] = [value for edge, value in enumerate(values) if edge not in dropped]

    def _closing(self, edges: list[int], component: Mapping[int, int]) -> Iterator[int]:
        """Only edges within one strongly connected component can close a cycle, so only those are walked."""
        reached: dict[int, list[int]] = defaultdict(list)
        for edge in edges:
            subject, object_ = self._subjects[edge], self._objects[edge]
            if component.get(subject, -1) != component.get(object_, -2):
                continue
            if _leads(reached, object_, subject):
                file, row = self._origin[edge]
                names = list(self._names)
                self.bad.append(BadRow(file, row, f"closes a cycle: {names[object_]} leads to {names[subject]} already"))
                yield edge
            else:
                reached[subject].append(object_)

    def graph(self) -> KnowledgeGraph:
        subjects = np.asarray(self._subjects, dtype=np.int32)
        objects = np.asarray(self._objects, dtype=np.int32)
        ends = np.concatenate([subjects, objects])
        order = np.argsort(ends, kind="stable")
        edges = np.tile(np.arange(len(subjects), dtype=np.int32), 2)
        return KnowledgeGraph(
            names=list(self._names), types=self._types, specialties=self._specialties, relations=list(self._relations),
            subjects_e=subjects, relations_e=np.asarray(self._of, dtype=np.int32), objects_e=objects,
            documents_e=self._documents, attributes=self._attributes, numbers=self._names,
            _offsets=np.searchsorted(ends[order], np.arange(len(self._names) + 1)), _incident=edges[order],
        )  # fmt: skip


def is_literal(text: str) -> bool:
    """Whether an object is a number or a date, and so an attribute of its subject instead of an entity.

    Example:
        >>> [is_literal(text) for text in ("42", "3.5", "2019-04-01", "IL-6", "5-HT2A")]
        [True, True, True, False, False]
    """
    if _NUMBER.fullmatch(text):
        return True
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True


def _leads(edges: Mapping[int, list[int]], start: int, goal: int) -> bool:
    stack, seen = [start], {start}
    while stack:
        node = stack.pop()
        if node == goal:
            return True
        for following in edges.get(node, ()):
            if following not in seen:
                seen.add(following)
                stack.append(following)
    return False


def _shown(triple: Triple) -> str:
    return f"{triple.subject} {triple.relation} {triple.object}"
