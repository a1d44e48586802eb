"""A large fictional medicine: any number of documents up to a million, each computed from its place, none kept in memory.

::

    disease ─caused_by─▶ gene ─inhibited_by─▶ drug ─excluded_in─▶ disease …      drug ─dosed_at─▶ mg per kg
       ├─diagnosed_by─▶ test ─measures─▶ gene ◀─metabolised_by─ drug            every entity ─…_in─▶ year (its profile)
       └─presents_with─▶ sign ─relieved_by─▶ drug

Facts are numbered, and so are documents: the number of a fact says which documents state it, so a million of them need no table. The
strongest document of a fact tells the truth; weaker ones mostly contradict it. Nothing here is a medical claim.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import gcd
from typing import NamedTuple

from tasks.atlas.config import AtlasConfig
from tasks.atlas.language import (
    ATTRIBUTES,
    CLOSINGS,
    FACTS,
    OPENINGS,
    PUBLICATION_TYPES,
    SPECIALTIES,
    TYPES,
    Relation,
    alias,
    misspelt,
    name,
)
from tasks.graph.triples import Triple
from tasks.questions import Document

# How many documents state a fact, in turn: 15 % one, 45 % two, 40 % three, as in the demo's world.
STATED_BY = (2, 3, 1, 2, 3, 2, 3, 2, 3, 1, 2, 3, 2, 3, 2, 3, 1, 2, 3, 2)
_BEFORE = tuple(sum(STATED_BY[:i]) for i in range(len(STATED_BY)))
_CYCLE = sum(STATED_BY)
SMALLEST_DOSE, LARGEST_DOSE = 2, 60  # mg per kg
FIRST_YEAR, LAST_YEAR = 1950, 2019  # of discoveries
FIRST_PUBLISHED, LAST_PUBLISHED = 1985, 2024
PROFILE = "profile"
REVIEW = "narrative review"
QUERY_KINDS = ("plain", "alias", "typo")


class Entity(NamedTuple):
    """`place` counts the entities of its type in its collection, `number` all entities of the atlas."""

    kind: str
    place: int
    number: int

    @property
    def name(self) -> str:
        return name(self.kind, self.number)

    @property
    def specialty(self) -> str:
        return SPECIALTIES[self.place % len(SPECIALTIES)]


class Fact(NamedTuple):
    """What holds, and by which documents, strongest first: their numbers, evidence levels and what they say."""

    relation: Relation
    subject: Entity
    object: str
    documents: tuple[tuple[int, int, str], ...]


class Query(NamedTuple):
    """What a searcher types, and the documents that it should find, best first."""

    text: str
    kind: str  # plain | alias | typo
    gold: tuple[str, ...]
    specialty: str
    collection: str


@dataclass(frozen=True)
class Atlas:
    """One collection of the large world. Two atlases of one configuration, training and held out, share no entity.

    Example:
        >>> training, held_out = Atlas.pair(AtlasConfig(documents=5_000))
        >>> fact = training.fact(training.entity("drug", 3), FACTS[6])
        >>> fact.subject.name, fact.object, [level for _, level, _ in fact.documents]
        ('Vacubocillin', '27', [2, 3])
        >>> [len(list(atlas.documents())) for atlas in (training, held_out)]
        [4500, 500]
    """

    config: AtlasConfig
    collection: str
    size: int  # documents
    first_number: int  # of its entities among those of the atlas

    @classmethod
    def pair(cls, config: AtlasConfig) -> tuple[Atlas, Atlas]:
        """The training collection and the held-out one."""
        held_out = round(config.documents * config.held_out_share)
        training = cls(config, "atlas/train", config.documents - held_out, 0)
        return training, cls(config, "atlas/held-out", held_out, training.entity_count)

    @cached_property
    def counts(self) -> dict[str, int]:
        """Entities of each type, such that the documents about them fill all but the share of distractors."""
        per_entity = sum(share * (1 + len(self.relations_of(kind)) * _CYCLE / len(STATED_BY)) for kind, share in TYPES.items())
        entities = self.size * (1 - self.config.distractors) / per_entity
        # A dozen at least, or a specialty would be empty; the distractors make up for what rounding leaves.
        return {kind: max(len(SPECIALTIES), int(entities * share)) for kind, share in TYPES.items()}

    @property
    def entity_count(self) -> int:
        return sum(self.counts.values())

    @staticmethod
    def relations_of(kind: str) -> tuple[Relation, ...]:
        return _FACTS_OF[kind]

    def entity(self, kind: str, place: int) -> Entity:
        return Entity(kind, place, self.first_number + self._entities_before[kind] + place)

    def entities(self) -> Iterator[Entity]:
        """All of them, type after type."""
        for kind, count in self.counts.items():
            for place in range(count):
                yield self.entity(kind, place)

    def alias(self, entity: Entity) -> str | None:
        """Its second name, if it has one."""
        return alias(entity.kind, entity.number) if self._rng("alias", entity.number).random() < self.config.aliases else None

    def year(self, entity: Entity) -> int:
        """The one attribute of an entity."""
        return self._rng("year", entity.number).randint(FIRST_YEAR, LAST_YEAR)

    def fact(self, subject: Entity, relation: Relation) -> Fact:
        """What holds of an entity, computed from its number."""
        number = self._fact_number(subject, relation)
        rng = self._rng("fact", number)
        first = self.entity_count + number // len(STATED_BY) * _CYCLE + _BEFORE[number % len(STATED_BY)]
        count = STATED_BY[number % len(STATED_BY)]
        levels = sorted(rng.sample(range(1, len(PUBLICATION_TYPES) + 1), count))
        truth = self._draw(rng, subject, relation)
        told = [truth]
        for _ in levels[1:]:
            agrees = rng.random() < self.config.weaker_agrees
            told.append(truth if agrees else self._draw(rng, subject, relation, truth))
        return Fact(relation, subject, truth, tuple(zip(range(first, first + count), levels, told, strict=True)))

    def facts(self) -> Iterator[Fact]:
        """All of them, in the order of their numbers."""
        for entity in self.entities():
            for relation in self.relations_of(entity.kind):
                yield self.fact(entity, relation)

    def documents(self) -> Iterator[Document]:
        """All documents: profiles, then evidence, then distractors. Their ids say nothing of that order."""
        for place, entity in enumerate(self.entities()):
            yield self._profile(place, entity)
        last = self.entity_count
        for fact in self.facts():
            for number, level, told in fact.documents:
                yield self._evidence(number, fact, level, told)
                last = number + 1
        for number in range(last, self.size):
            yield self._distractor(number)

    def document_id(self, number: int) -> str:
        return f"{self.collection}/{number * self._stride % self.size:07d}"

    def triples(self) -> Iterator[Triple]:
        """The true statements as a knowledge graph reads them, each with its strongest document."""
        for place, entity in enumerate(self.entities()):
            attribute = _ATTRIBUTE_OF[entity.kind]
            yield Triple(
                entity.name, attribute.name, str(self.year(entity)), entity.kind, attribute.object, self.document_id(place),
                entity.specialty,
            )  # fmt: skip
        for fact in self.facts():
            yield Triple(
                fact.subject.name, fact.relation.name, fact.object, fact.subject.kind, fact.relation.object,
                self.document_id(fact.documents[0][0]), fact.subject.specialty,
            )  # fmt: skip

    def queries(self, kind: str, count: int) -> list[Query]:
        """Searches for facts, by name, by second name or with a typing error; the same for ever from one seed."""
        if kind not in QUERY_KINDS:
            raise ValueError(f"kind must be one of {', '.join(QUERY_KINDS)}, got {kind!r}")
        rng = random.Random(f"{self.config.seed}/{self.collection}/queries/{kind}")
        found: list[Query] = []
        while len(found) < count:
            subject = self.entity(kind_of := rng.choice(list(TYPES)), rng.randrange(self.counts[kind_of]))
            relation = rng.choice(self.relations_of(subject.kind))
            called = self.alias(subject) if kind == "alias" else subject.name
            if called is None:
                continue
            if kind == "typo":
                called = misspelt(called, rng)
            gold = tuple(self.document_id(number) for number, _, _ in self.fact(subject, relation).documents)
            found.append(Query(f"{called} {relation.phrase}", kind, gold, subject.specialty, self.collection))
        return found

    @cached_property
    def _entities_before(self) -> dict[str, int]:
        return {kind: sum(list(self.counts.values())[:i]) for i, kind in enumerate(self.counts)}

    @cached_property
    def _facts_before(self) -> dict[str, int]:
        per_type = [count * len(self.relations_of(kind)) for kind, count in self.counts.items()]
        return {kind: sum(per_type[:i]) for i, kind in enumerate(self.counts)}

    @cached_property
    def _stride(self) -> int:
        """A factor without a common divisor with the size: multiplied by it, numbers change places."""
        stride = round(self.size * 0.618)
        while gcd(stride, self.size) != 1:
            stride += 1
        return stride

    def _fact_number(self, subject: Entity, relation: Relation) -> int:
        relations = self.relations_of(subject.kind)
        return self._facts_before[subject.kind] + subject.place * len(relations) + relations.index(relation)

    def _rng(self, what: str, number: int) -> random.Random:
        return random.Random(f"{self.config.seed}/{self.collection}/{what}/{number}")

    def _draw(self, rng: random.Random, subject: Entity, relation: Relation, other_than: str = "") -> str:
        while True:
            if relation.object == "dose":
                value = str(rng.randint(SMALLEST_DOSE, LARGEST_DOSE))
            else:
                value = self._object(rng, subject, relation.object).name
            if value not in (other_than, subject.name):
                return value

    def _object(self, rng: random.Random, subject: Entity, kind: str) -> Entity:
        count = self.counts[kind]
        if rng.random() >= self.config.same_specialty:
            return self.entity(kind, rng.randrange(count))
        shift = subject.place % len(SPECIALTIES)
        rows = (count - shift - 1) // len(SPECIALTIES) + 1
        return self.entity(kind, rng.randrange(rows) * len(SPECIALTIES) + shift)

    def _profile(self, number: int, entity: Entity) -> Document:
        attribute = _ATTRIBUTE_OF[entity.kind]
        second = self.alias(entity)
        lines = [f"{entity.name} is a {entity.kind} of {entity.specialty}."]
        if second:
            lines.append(f"{entity.name} is also known as {second}.")
        lines.append(f"{entity.name} {attribute.phrase} {self.year(entity)}.")
        return Document(
            id=self.document_id(number), title=f"Profile of {entity.name}", text="\n".join(lines), collection=self.collection,
            publication_type=PROFILE,
        )  # fmt: skip

    def _evidence(self, number: int, fact: Fact, level: int, told: str) -> Document:
        rng = self._rng("document", number)
        subject, kind = fact.subject, PUBLICATION_TYPES[level - 1]
        year = rng.randint(FIRST_PUBLISHED, LAST_PUBLISHED)
        lines = [f"A {kind} of {rng.randint(4, 4000)} cases of {subject.specialty}.", rng.choice(OPENINGS)]
        second = self.alias(subject)
        if second and rng.random() < self.config.alias_shown:
            lines.append(f"Some authors write {second} for {subject.name}.")
        lines += [f"{subject.name} {fact.relation.phrase} {told}.", rng.choice(CLOSINGS)]
        return Document(
            id=self.document_id(number), title=f"{subject.name}: a {kind}", text="\n".join(lines), collection=self.collection,
            publication_type=kind, evidence_level=level, year=year,
        )  # fmt: skip

    def _distractor(self, number: int) -> Document:
        rng = self._rng("document", number)
        kind = rng.choice(list(TYPES))
        first = self.entity(kind, rng.randrange(self.counts[kind]))
        other_kind = rng.choice(list(TYPES))
        second = self._object(rng, first, other_kind)
        lines = [
            f"This review of {first.specialty} discusses {first.name} together with {second.name}.",
            rng.choice(OPENINGS),
            f"No conclusion about {first.name} is drawn.",
        ]
        return Document(
            id=self.document_id(number), title=f"Thoughts on {first.name}", text="\n".join(lines), collection=self.collection,
            publication_type=REVIEW, evidence_level=len(PUBLICATION_TYPES), year=rng.randint(FIRST_PUBLISHED, LAST_PUBLISHED),
        )  # fmt: skip


_FACTS_OF = {kind: tuple(relation for relation in FACTS if relation.subject == kind) for kind in TYPES}
_ATTRIBUTE_OF = {relation.subject: relation for relation in ATTRIBUTES}
