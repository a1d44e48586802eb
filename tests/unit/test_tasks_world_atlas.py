"""The large world: as many documents as asked for, the same from one seed, held-out entities apart, truth on the strongest."""

from __future__ import annotations

from collections import Counter

import pytest
from pydantic import ValidationError

from tasks.atlas.config import MOST_DOCUMENTS, AtlasConfig
from tasks.atlas.language import ALIASES_FROM, ENDINGS, FACTS, PHRASES, SPECIALTIES, TYPES, root
from tasks.atlas.world import QUERY_KINDS, Atlas
from tasks.graph.wording import statements_in

CONFIG = AtlasConfig(documents=5_000)


@pytest.fixture(scope="module")
def pair() -> tuple[Atlas, Atlas]:
    return Atlas.pair(CONFIG)


def test_there_are_exactly_as_many_documents_each_of_its_own_id(pair: tuple[Atlas, Atlas]) -> None:
    documents = [document for atlas in pair for document in atlas.documents()]
    assert len(documents) == len({document.id for document in documents}) == CONFIG.documents
    assert {document.collection for document in documents} == {"atlas/train", "atlas/held-out"}


def test_one_seed_makes_one_world_and_another_seed_another(pair: tuple[Atlas, Atlas]) -> None:
    again, other = Atlas.pair(CONFIG)[0], Atlas.pair(CONFIG.model_copy(update={"seed": 1}))[0]
    assert list(again.documents()) == list(pair[0].documents())
    assert list(again.triples()) == list(pair[0].triples())
    ours, theirs = ([fact.object for fact in atlas.facts()] for atlas in (pair[0], other))
    assert sum(a == b for a, b in zip(ours, theirs, strict=True)) < 0.1 * len(ours)


def test_held_out_entities_stand_in_no_training_document(pair: tuple[Atlas, Atlas]) -> None:
    training, held_out = pair
    names = [
        {name for entity in atlas.entities() for name in (entity.name, atlas.alias(entity)) if name}
        for atlas in (training, held_out)
    ]
    assert not names[0] & names[1]
    words = {word.strip(".:,") for document in training.documents() for word in f"{document.title} {document.text}".split()}
    assert not {name.split()[0] for name in names[1]} & words


def test_facts_stand_where_their_numbers_say_and_the_strongest_is_true(pair: tuple[Atlas, Atlas]) -> None:
    documents = {document.id: document for atlas in pair for document in atlas.documents()}
    agreeing: Counter[bool] = Counter()
    for atlas in pair:
        for fact in atlas.facts():
            levels = []
            for place, (number, level, told) in enumerate(fact.documents):
                document = documents[atlas.document_id(number)]
                (read,) = statements_in(document.text, document.id, [fact.relation.name], PHRASES)
                assert (read.subject, read.object, document.evidence_level) == (fact.subject.name, told, level)
                levels.append(level)
                if place:
                    agreeing[told == fact.object] += 1
                else:
                    assert told == fact.object
            assert levels == sorted(set(levels))
    assert 0.10 < agreeing[True] / agreeing.total() < 0.20


def test_every_triple_stands_in_its_document(pair: tuple[Atlas, Atlas]) -> None:
    for atlas in pair:
        documents = {document.id: document for document in atlas.documents()}
        for triple in atlas.triples():
            read = statements_in(documents[triple.document].text, triple.document, [triple.relation], PHRASES)
            assert [(each.subject, each.object) for each in read] == [(triple.subject, triple.object)]


def test_twelve_specialties_five_types_and_every_relation(pair: tuple[Atlas, Atlas]) -> None:
    for atlas in pair:
        counted = Counter((entity.kind, entity.specialty) for entity in atlas.entities())
        assert len(counted) == len(TYPES) * len(SPECIALTIES) == 60
        assert {fact.relation for fact in atlas.facts()} == set(FACTS)


def test_names_are_unique_as_far_as_the_largest_world_reaches() -> None:
    largest = Atlas.pair(AtlasConfig(documents=MOST_DOCUMENTS))
    assert sum(atlas.entity_count for atlas in largest) < ALIASES_FROM
    sample = [*range(0, 1_000_000, 37)]
    assert len({root(number) for number in sample}) == len(sample)
    assert all(len(set(endings)) == len(endings) for endings in ENDINGS.values())


def test_a_million_documents_are_reached_without_making_them() -> None:
    atlas = Atlas.pair(AtlasConfig(documents=MOST_DOCUMENTS))[0]
    last = atlas.entity("sign", atlas.counts["sign"] - 1)
    fact = atlas.fact(last, atlas.relations_of("sign")[0])
    assert 800_000 < fact.documents[-1][0] < atlas.size == 900_000


@pytest.mark.parametrize("kind", QUERY_KINDS)
def test_queries_name_the_documents_that_answer_them(pair: tuple[Atlas, Atlas], kind: str) -> None:
    atlas = pair[0]
    documents = {document.id: document for document in atlas.documents()}
    names = {entity.name for entity in atlas.entities()}
    queries = atlas.queries(kind, 50)
    assert queries == atlas.queries(kind, 50)
    for query in queries:
        called = next(query.text.removesuffix(f" {phrase}") for phrase in PHRASES.values() if query.text.endswith(f" {phrase}"))
        assert (called in names) == (kind == "plain")
        assert all(query.text.split()[-1] in documents[name].text for name in query.gold)
    with pytest.raises(ValueError, match="kind must be one of"):
        atlas.queries("other", 1)


def test_a_world_too_small_for_its_specialties_is_refused() -> None:
    with pytest.raises(ValidationError, match="raise documents or held_out_share"):
        AtlasConfig(documents=1_000)
