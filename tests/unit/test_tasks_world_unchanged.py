"""The demo's world, byte for byte: models are trained and figures are reported on it, so it may grow beside itself, never change."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path

import pytest
import yaml

from tasks.config import WorldConfig
from tasks.questions import Document
from tasks.teacher import demonstrate, drill
from tasks.vocabulary import vocabulary
from tasks.world import SOURCES, Universe

QUESTIONS = 60  # of each source in each world: every kind of question and every number of hops is among them


@pytest.fixture(scope="module")
def universe() -> Universe:
    """As configs/demo.yaml has it, which sets nothing of the world."""
    demo = yaml.safe_load((Path(__file__).parents[2] / "configs/demo.yaml").read_text(encoding="utf-8"))
    return Universe.build(WorldConfig.model_validate(demo.get("world", {})), run_seed=demo["run"]["seed"])


def documents(universe: Universe) -> Iterable[str]:
    # Names and values alone: a model that gains a field with a default has not changed what is asked.
    for d in universe.documents():
        yield f"{d.id}|{d.text}|{d.title}|{d.collection}|{d.publication_type}|{d.evidence_level}|{d.year}"


def questions(universe: Universe) -> Iterable[str]:
    for world in (*universe.training, *universe.held_out.values()):
        for source in SOURCES:
            for q in world.questions(source, QUESTIONS):
                context = [d.id for d in q.context]
                yield (
                    f"{q.id}|{q.text}|{q.kind.value}|{q.gold}|{sorted(q.options.items())}|{q.lower}|{q.upper}|{q.unit}|{q.source}"
                    f"|{q.specialty}|{q.hops}|{q.collection}|{q.gold_documents}|{q.reference_graphs}|{context}|{q.aliases}"
                )


def demonstrations(universe: Universe) -> Iterable[str]:
    for number in range(300):
        world = universe.training[number % len(universe.training)]
        question = world.question(list(SOURCES)[number % len(SOURCES)], number)

        def search(collection: str, query: str, facts=world.facts) -> list[Document]:  # type: ignore[no-untyped-def]
            relation, subject = query.split()
            return list(facts[relation, subject].documents)

        episode = demonstrate(world, question, random.Random(f"teacher/{number}"), search)
        yield f"{episode.prompt}|{episode.pieces}"
        yield str(drill(world, random.Random(number)))


def words(universe: Universe) -> Iterable[str]:
    return vocabulary()


@pytest.mark.parametrize(
    ("what", "digest"),
    [
        (documents, "c2c7d9343ca4c005c664bb74181915bd"),
        (questions, "97b4a3f80485355f8045b6ab24ff7c44"),
        (demonstrations, "6a7edcd13cc5e6b3063d81f90e01d182"),
        (words, "89a1c2508af522051a60967d9be2ad1b"),
    ],
)
def test_the_demo_asks_what_it_always_asked(universe: Universe, what: Callable[[Universe], Iterable[str]], digest: str) -> None:
    seen = sha256()
    for line in what(universe):
        seen.update(line.encode() + b"\n")
    assert seen.hexdigest()[:32] == digest
