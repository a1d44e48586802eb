"""The medical world: fictional entities, literature about them that contradicts itself, and questions with certain answers.

    disease ──disease-cause──▶ gene ──gene-inhibitor──▶ drug ──drug-exclusion──▶ condition
                                                         └────drug-dose──▶ mg per kg

A fact is written down in one to three documents of different publication types. The strongest tells the truth; weaker ones
mostly contradict it. Every world is its own collection of the index. All is derived from seeds; nothing is a medical claim.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from tasks.config import WorldConfig
from tasks.questions import AnswerKind, Document, Question, without_length
from tasks.vocabulary import LETTERS, PUBLICATION_TYPES, names

TYPES = ("disease", "gene", "drug", "condition")
# relation → (type of the subject, type of the object); a dose is a number
SIGNATURES = {
    "disease-cause": ("disease", "gene"),
    "gene-inhibitor": ("gene", "drug"),
    "drug-exclusion": ("drug", "condition"),
    "drug-dose": ("drug", "dose"),
}
# By the number of hops, the ways from what is named to what is asked.
PATHS = {
    1: (("disease-cause",), ("gene-inhibitor",), ("drug-exclusion",), ("drug-dose",)),
    2: (("disease-cause", "gene-inhibitor"), ("gene-inhibitor", "drug-exclusion"), ("gene-inhibitor", "drug-dose")),
    3: (("disease-cause", "gene-inhibitor", "drug-exclusion"), ("disease-cause", "gene-inhibitor", "drug-dose")),
}
# What a question is about, by its last relation.
SPECIALTIES = {
    "disease-cause": "genetics",
    "gene-inhibitor": "pharmacology",
    "drug-exclusion": "safety",
    "drug-dose": "dosing",
}
SMALLEST_FACTOR, LARGEST_FACTOR = 2, 9  # doses and weights are one digit, so a product is at most two tokens

HELD_OUT_PURPOSES = ("gate", "probe", "test")  # cold-start gates, plateau decisions, reported figures: never shared


@dataclass(frozen=True)
class Fact:
    """What holds of one subject, with the documents about it, strongest first."""

    relation: str
    subject: str
    object: str
    documents: tuple[Document, ...]


@dataclass(frozen=True)
class TaskSource:
    """One kind of task: how many hops its questions take, as shares, and whether the documents come with the question."""

    name: str
    hops: Mapping[int, float]
    with_context: bool

    @property
    def offers(self) -> frozenset[tuple[str, str]]:
        """The pairs of answer kind and specialty that its questions have.

        Example:
            >>> sorted(SOURCES["world/joint"].offers)[-2:]
            [('text', 'pharmacology'), ('text', 'safety')]
        """
        paths = [path for hops, share in self.hops.items() if share for path in PATHS[hops]]
        return frozenset((kind, SPECIALTIES[path[-1]]) for path in paths for kind in _kinds(path[-1]))


SOURCES = {
    source.name: source
    for source in (
        TaskSource("world/reasoning", {1: 0.5, 2: 0.5}, with_context=True),
        TaskSource("world/retrieval", {1: 1.0}, with_context=False),
        # Three hops, each with contradictions, are what the cold start can hardly do: work that the other phases prepare for.
        TaskSource("world/joint", {2: 0.4, 3: 0.6}, with_context=False),
    )
}


def _kinds(last_relation: str) -> tuple[str, ...]:
    return ("number",) if last_relation == "drug-dose" else ("choice", "text")


def statement(relation: str, subject: str, level: int, value: str) -> str:
    """The one line that a document consists of; the evidence stands before the object, so a reader weighs it first."""
    return f"{relation} {subject} {PUBLICATION_TYPES[level - 1]} {value} ."


class World:
    """One collection: its facts, its documents, and the questions that it can answer.

    Example:
        >>> world = World("train-0", WorldConfig(), held_out=False)
        >>> question = world.question("world/joint", 5)
        >>> (question.hops, question == world.question("world/joint", 5))
        (3, True)
    """

    def __init__(self, collection: str, config: WorldConfig, *, held_out: bool) -> None:
        self.collection = collection
        self._config = config
        self._seed = f"{config.seed}/{collection}"
        rng = random.Random(self._seed)
        pool = names(held_out=held_out, share=config.held_out_share)
        per_type = min(config.entities_per_type, len(pool) // len(TYPES))
        chosen = rng.sample(pool, per_type * len(TYPES))
        self.entities = {kind: chosen[i * per_type : (i + 1) * per_type] for i, kind in enumerate(TYPES)}
        self.facts = self._make_facts(rng)

    def _make_facts(self, rng: random.Random) -> dict[tuple[str, str], Fact]:
        drafts = [
            (relation, subject, self._evidence(rng, object_type))
            for relation, (subject_type, object_type) in SIGNATURES.items()
            for subject in self.entities[subject_type]
        ]
        numbers = list(range(sum(len(evidence) for _, _, evidence in drafts)))
        rng.shuffle(numbers)  # so that a document's id says nothing about its evidence level
        facts = {}
        for relation, subject, evidence in drafts:
            documents = tuple(
                Document(
                    id=f"{self.collection}/{numbers.pop():05d}",
                    text=statement(relation, subject, level, value),
                    collection=self.collection,
                    publication_type=PUBLICATION_TYPES[level - 1],
                    evidence_level=level,
                )
                for level, value in evidence
            )
            facts[relation, subject] = Fact(relation, subject, evidence[0][1], documents)
        return facts

    def _evidence(self, rng: random.Random, object_type: str) -> list[tuple[int, str]]:
        count = rng.choices((1, 2, 3), weights=self._config.documents_per_fact)[0]
        levels = sorted(rng.sample(range(1, len(PUBLICATION_TYPES) + 1), count))
        truth = self._draw(rng, object_type)
        return [
            (level, truth if i == 0 or rng.random() < self._config.weaker_agrees else self._draw(rng, object_type, truth))
            for i, level in enumerate(levels)
        ]

    def _draw(self, rng: random.Random, object_type: str, other_than: str = "") -> str:
        while True:
            value = (
                str(rng.randint(SMALLEST_FACTOR, LARGEST_FACTOR))
                if object_type == "dose"
                else rng.choice(self.entities[object_type])
            )
            if value != other_than:
                return value

    @cached_property
    def documents(self) -> list[Document]:
        """All documents, ordered by id."""
        return sorted((d for fact in self.facts.values() for d in fact.documents), key=lambda d: d.id)

    def chain(self, relations: tuple[str, ...], subject: str) -> list[Fact]:
        """The facts along a path of relations."""
        facts: list[Fact] = []
        for relation in relations:
            facts.append(self.facts[relation, subject])
            subject = facts[-1].object
        return facts

    def question(self, source_name: str, index: int) -> Question:
        """The `index`-th question of a source: the same index gives the same question, for ever."""
        source = SOURCES[source_name]
        rng = random.Random(f"{self._seed}/{source_name}/{index}")
        hops = rng.choices(list(source.hops), weights=list(source.hops.values()))[0]
        relations = rng.choice(PATHS[hops])
        subject = rng.choice(self.entities[SIGNATURES[relations[0]][0]])
        facts = self.chain(relations, subject)
        path = " ".join([f"{relations[0]} {subject}", *(f"then {relation}" for relation in relations[1:])])
        common = {
            "id": f"{source_name}/{self.collection}/{index}",
            "source": source_name,
            "specialty": SPECIALTIES[relations[-1]],
            "hops": len(relations),
            "collection": self.collection,
            "gold_documents": tuple(fact.documents[0].id for fact in facts),
            "reference_graphs": (tuple((fact.subject, fact.relation, fact.object) for fact in facts),),
            "context": self._context(rng, facts) if source.with_context else (),
        }
        answer = facts[-1].object
        if relations[-1] == "drug-dose":
            weight = rng.randint(SMALLEST_FACTOR, LARGEST_FACTOR)
            product = weight * int(answer)
            return Question(
                text=f"{path} for {weight} kg ?", kind=AnswerKind.NUMBER, gold=str(product), lower=product, upper=product,
                unit="mg", **common,
            )  # fmt: skip
        if rng.random() < 0.5:
            return Question(text=f"{path} ?", kind=AnswerKind.TEXT, gold=answer, **common)
        options = self._options(rng, facts)
        gold = next(letter for letter, option in options.items() if option == answer)
        return Question(text=f"{path} ?", kind=AnswerKind.CHOICE, gold=gold, options=options, **common)

    def _options(self, rng: random.Random, facts: list[Fact]) -> dict[str, str]:
        """Four options: the answer, what weaker documents claim, the intermediate entity, and strangers."""
        answer = facts[-1].object
        claims = {document.text.split()[-2] for fact in facts for document in fact.documents} - {answer}
        wrong = rng.sample(sorted(claims), min(len(claims), len(LETTERS) - 1))
        if len(facts) > 1 and facts[0].object not in wrong:
            wrong = [facts[0].object, *wrong][: len(LETTERS) - 1]  # who stops after one hop must find a letter, too
        strangers = self.entities[SIGNATURES[facts[-1].relation][1]]
        while len(wrong) < len(LETTERS) - 1:
            stranger = rng.choice(strangers)
            if stranger != answer and stranger not in wrong:
                wrong.append(stranger)
        shuffled = rng.sample([answer, *wrong], len(LETTERS))
        return dict(zip(LETTERS, shuffled, strict=True))

    def _context(self, rng: random.Random, facts: list[Fact]) -> tuple[Document, ...]:
        """The strongest document of every fact on the path, without its rivals, among strangers; four in all."""
        documents = [fact.documents[0] for fact in facts]
        subjects = {fact.subject for fact in facts}
        while len(documents) < 4:
            # Strangers share the last relation, so that only the entity tells the right line from the wrong ones.
            relation = facts[-1].relation
            subject = rng.choice(self.entities[SIGNATURES[relation][0]])
            if subject not in subjects:
                subjects.add(subject)
                documents.append(self.facts[relation, subject].documents[0])
        return tuple(rng.sample(documents, len(documents)))

    def offers(self, source_name: str) -> frozenset[tuple[str, str]]:
        """The pairs of answer kind and specialty that questions of a source have."""
        return SOURCES[source_name].offers

    def questions(
        self, source_name: str, count: int, wanted: Callable[[Question], bool] = lambda question: True
    ) -> list[Question]:
        """`count` questions, of those that are wanted, whose texts, options and contexts all differ."""
        seen: set[str] = set()
        found: list[Question] = []
        for index in range(count * 200 + 1_000):  # what is wanted may be one in some thirty
            question = self.question(source_name, index)
            if not wanted(question):
                continue
            key = question.text + "".join(question.options.values()) + "".join(d.id for d in question.context)
            if key not in seen:
                seen.add(key)
                found.append(question)
            if len(found) == count:
                return found
        raise ValueError(
            f"world {self.collection!r} has only {len(found)} different questions of {source_name} as they are wanted, not {count}"
        )


class HeldOutQuestions(Protocol):
    """Where held-out questions come from: a world, or one and the data sets beside it."""

    def offers(self, source_name: str) -> frozenset[tuple[str, str]]: ...

    def questions(self, source_name: str, count: int, wanted: Callable[[Question], bool] = ...) -> list[Question]: ...


@dataclass(frozen=True)
class Universe:
    """All worlds of a run: those for training, and one held-out world for each purpose."""

    training: tuple[World, ...]
    held_out: dict[str, World]

    @classmethod
    def build(cls, config: WorldConfig, run_seed: int = 0) -> Universe:
        """Every seed of a run makes other worlds, so that figures over seeds also vary in what is asked."""
        config = config.model_copy(update={"seed": config.seed + run_seed})
        return cls(
            tuple(World(f"train-{i}", config, held_out=False) for i in range(config.training_worlds)),
            {purpose: World(purpose, config, held_out=True) for purpose in HELD_OUT_PURPOSES},
        )

    def documents(self) -> Iterator[Document]:
        """The whole corpus, world after world."""
        for world in (*self.training, *self.held_out.values()):
            yield from world.documents

    def question(self, question_id: str) -> Question:
        """The question of an id, made anew: `source/name/collection/index`, and the length asked for, if any."""
        name, length = without_length(question_id)
        source_name, collection, index = name.rsplit("/", 2)
        worlds = {world.collection: world for world in (*self.training, *self.held_out.values())}
        question = worlds[collection].question(source_name, int(index))
        return question.thinking_for(length) if length else question

    def training_question(self, source_name: str, index: int) -> Question:
        """The `index`-th training question of a source; the worlds take turns."""
        world = self.training[index % len(self.training)]
        return world.question(source_name, index // len(self.training))

    def offers(self, source_name: str) -> frozenset[tuple[str, str]]:
        """The pairs of answer kind and specialty that training questions of a source have."""
        return SOURCES[source_name].offers

    def asked(self, purpose: str) -> HeldOutQuestions:
        """Where the held-out questions for a purpose come from."""
        return self.held_out[purpose]
