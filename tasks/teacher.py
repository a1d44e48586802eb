"""The teacher of the cold start: demonstrations that are right in form and imperfect on purpose, and recall drills.

The imperfections are the headroom of reinforcement learning: a teacher that always stopped after the last hop, cited the best
evidence and multiplied right would leave nothing to learn by reward.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from tasks.prompting import (
    ANSWER_CLOSE,
    ANSWER_OPEN,
    DOCUMENT_CLOSE,
    DOCUMENT_OPEN,
    SEARCH_CLOSE,
    SEARCH_OPEN,
    THINK_CLOSE,
    THINK_OPEN,
    question_prompt,
    render_documents,
)
from tasks.questions import AnswerKind, Document, Question
from tasks.vocabulary import END, LETTERS, RELATIONS
from tasks.world import LARGEST_FACTOR, SIGNATURES, SMALLEST_FACTOR, World, statement

STOPS_EARLY = {
    "world/reasoning": 0.5,
    "world/retrieval": 0.2,
    "world/joint": 0.35,
}  # of questions of several hops with a named answer
CITES_STRANGER = 0.4  # of the last hops in the reasoning phase, where the strangers stand in the prompt
WRONG_PRODUCT = 0.08  # 0.2 was measured to be too much: the model then learns to guess
FEW_LEVELS = 0.7  # of the drills: with more levels the model learns to match the level instead of the entity

SearchFunction = Callable[[str, str], list[Document]]
"""(collection, query) → documents, as the retrieval service would answer."""


@dataclass(frozen=True)
class Demonstration:
    """A prompt and the pieces that follow it; only the model's own pieces carry loss."""

    prompt: str
    pieces: tuple[tuple[str, bool], ...]  # (text, written by the model)

    @property
    def text(self) -> str:
        """The response as one text."""
        return " ".join(text for text, _ in self.pieces)


def demonstrate(world: World, question: Question, rng: random.Random, search: SearchFunction) -> Demonstration:
    """One teacher episode for a question: every hop restates a document, then the answer follows from what was restated."""
    path = question.text.split(" for ")[0].removesuffix(" ?").split(" then ")
    relations, subject = [step.split()[0] for step in path], path[0].split()[1]
    final_is_dose = relations[-1] == "drug-dose"
    if len(relations) > 1 and not final_is_dose and rng.random() < STOPS_EARLY[question.source]:
        relations = relations[: rng.randint(1, len(relations) - 1)]
    pieces: list[tuple[str, bool]] = []
    own = THINK_OPEN
    value = subject
    for hop, relation in enumerate(relations):
        if question.context:
            documents = list(question.context)
        else:
            pieces.append((f"{own} {SEARCH_OPEN} {relation} {value} {SEARCH_CLOSE}", True))
            documents = search(question.collection, f"{relation} {value}")
            pieces.append((render_documents(documents), False))
            own = ""
        about = [d for d in documents if d.text.startswith(f"{relation} {value} ")]
        if question.context and hop == len(relations) - 1 and rng.random() < CITES_STRANGER:
            about = [d for d in documents if d.text.startswith(f"{relation} ")]
        if not about:
            raise LookupError(
                f"no document about {relation} {value} in {question.collection}: the index does not fit the world"
            )
        cited = rng.choice(about)
        own = f"{own} {cited.text}".strip()
        value = cited.text.split()[-2]
    pieces.append((f"{own} {_conclude(question, value, rng, final_is_dose)} {END}", True))
    return Demonstration(question_prompt(question), tuple(pieces))


def _conclude(question: Question, value: str, rng: random.Random, is_dose: bool) -> str:
    if is_dose:
        weight = int(question.text.split(" for ")[1].split()[0])
        product = weight * int(value)
        if rng.random() < WRONG_PRODUCT:
            product = rng.randint(SMALLEST_FACTOR, LARGEST_FACTOR) * rng.randint(SMALLEST_FACTOR, LARGEST_FACTOR)
        return f"{weight} * {value} = {product} . {THINK_CLOSE} {ANSWER_OPEN} {product} {ANSWER_CLOSE}"
    if question.kind is AnswerKind.CHOICE:
        letters = [letter for letter, option in question.options.items() if option == value]
        letter = letters[0] if letters else rng.choice(LETTERS)
        name = question.options[letter]
        return f"{name} ({letter}) . {THINK_CLOSE} {ANSWER_OPEN} ({letter}) {ANSWER_CLOSE}"
    return f"{THINK_CLOSE} {ANSWER_OPEN} {value} {ANSWER_CLOSE}"


def drill(world: World, rng: random.Random) -> Demonstration:
    """Pure recall: random lines that hold nowhere are re-listed in another order, then the options with their letters."""
    levels = rng.sample(range(1, 7), rng.randint(1, 2)) if rng.random() < FEW_LEVELS else list(range(1, 7))
    lines = []
    for _ in range(rng.randint(2, 4)):
        relation = rng.choice(RELATIONS)
        subject_type, object_type = SIGNATURES[relation]
        subject = rng.choice(world.entities[subject_type])
        is_dose = object_type == "dose"
        value = str(rng.randint(SMALLEST_FACTOR, LARGEST_FACTOR)) if is_dose else rng.choice(world.entities[object_type])
        lines.append(statement(relation, subject, rng.choice(levels), value))
    options = list(zip(LETTERS, rng.sample([n for group in world.entities.values() for n in group], len(LETTERS)), strict=True))
    shown = " ".join(f"{DOCUMENT_OPEN} {line} {DOCUMENT_CLOSE}" for line in lines)
    prompt = f"list {' '.join(f'({letter}) {name}' for letter, name in options)} {shown}"
    recalled = rng.sample(lines, len(lines))
    named = [f"{name} ({letter}) ." for letter, name in rng.sample(options, len(options))]
    return Demonstration(prompt, ((" ".join([THINK_OPEN, *recalled, *named, THINK_CLOSE, END]), True),))
