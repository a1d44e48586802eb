"""What is asked in an evaluation: held-out questions of the run's own world, or a file's."""

from __future__ import annotations

import random
from collections.abc import Iterable

from medr3.errors import UserError, did_you_mean
from tasks.formats import NAMES
from tasks.questions import Question
from tasks.reading import Dataset
from tasks.rows import FileRefused
from tasks.world import SOURCES, Universe

WORLD_QUESTIONS = 200  # as many as a run reports on by default
MOST_WORLD_QUESTIONS = 5_000  # a world has hardly more that differ, and looking for more takes minutes
PURPOSE = "test"  # of the held-out worlds, the one by which nothing is ever decided


def is_of_world(name: str) -> bool:
    """Whether the questions, and the literature about them, are the run's own."""
    return name in SOURCES


def load_questions(names: list[str], universe: Universe, count: int | None, seed: int) -> list[Question]:
    """The questions of all data sets, each id once; of each data set `count` at most, drawn by the seed where it is a file."""
    found: dict[str, Question] = {}
    for name in names:
        for question in _questions(name, universe, count, seed):
            if question.id in found:
                raise UserError(f"--dataset {name}: question {question.id!r} is in another data set as well: name each once")
            found[question.id] = question
    return list(found.values())


def _questions(name: str, universe: Universe, count: int | None, seed: int) -> list[Question]:
    if is_of_world(name):
        if count is not None and count > MOST_WORLD_QUESTIONS:
            raise UserError(f"--questions {count}: a world is asked {MOST_WORLD_QUESTIONS:,} at most")
        try:
            return universe.held_out[PURPOSE].questions(name, WORLD_QUESTIONS if count is None else count)
        except ValueError as error:
            raise UserError(f"--questions {count}: {error}") from None
    dataset = Dataset.parse(name)
    if not dataset.format and not dataset.path.suffix and not dataset.path.exists():
        raise UserError(
            f"--dataset {name}: no such data set{did_you_mean(name, SOURCES)}; there are {', '.join(SOURCES)}, and"
            f" [FORMAT:]PATH[@SPLIT] of a file or folder of questions, of the formats {', '.join(NAMES)}"
        )
    try:
        return drawn(dataset.read_strictly(), count, seed)
    except FileRefused as error:
        raise UserError(f"--dataset: {error}; medr3 data import --allow-bad N writes a file without such rows") from None


def drawn(questions: Iterable[Question], count: int | None, seed: int) -> list[Question]:
    """So many of them, each as likely as any other, in their order; never more than so many in memory (Vitter's algorithm R)."""
    if count is None:
        return list(questions)
    rng = random.Random(seed)
    kept: list[tuple[int, Question]] = []
    for place, question in enumerate(questions):
        if place < count:
            kept.append((place, question))
        elif (slot := rng.randint(0, place)) < count:
            kept[slot] = (place, question)
    return [question for _, question in sorted(kept, key=lambda each: each[0])]
