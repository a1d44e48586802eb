"""Questions of data sets beside the world's own, asked by number and by id from a file of the run, however many there are.

::

    data set, in any format ─▶ <run>/questions/<name>.train.jsonl, <name>.held_out.jsonl ─▶ Tasks: Universe and data sets as one

The run keeps its own copy: a resume asks the same questions, whatever has become of the files that they came from.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

from tasks.questions import Question, without_length
from tasks.world import HeldOutQuestions, Universe, World

HALVES = {"probe": 0, "test": 1}  # what decides a plateau is never what is reported


class QuestionStore:
    """Questions in a JSON lines file, found by number or by id; of each only its place and its id are in memory.

    Example:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> asked = [Question(id=f"q{i}", text="?", kind="text", gold="x") for i in range(3)]
        >>> store = QuestionStore.build(Path(folder.name, "q.jsonl"), asked)
        >>> len(store), store[2].id, store.find("q1").id, store.find("q9")
        (3, 'q2', 'q1', None)
        >>> folder.cleanup()
    """

    def __init__(self, path: Path) -> None:
        self._path = path  # opened at first use, so that a store can be sent to another process

    @classmethod
    def build(cls, path: Path, questions: Iterable[Question]) -> QuestionStore:
        """Writes the file; it appears whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with unfinished.open("wb") as file:
                for question in questions:
                    file.write(question.model_dump_json(exclude_defaults=True).encode("utf-8") + b"\n")
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
        return cls(path)

    def __len__(self) -> int:
        return len(self._index.ids)

    def __getitem__(self, number: int) -> Question:
        at, end = self._index.offsets[number : number + 2]
        with self._path.open("rb") as file:
            file.seek(at)
            return Question.model_validate(orjson.loads(file.read(end - at)))

    def find(self, question_id: str) -> Question | None:
        number = self._index.ids.get(question_id)
        return None if number is None else self[number]

    @property
    def offers(self) -> frozenset[tuple[str, str]]:
        """The pairs of answer kind and specialty that its questions have."""
        return self._index.offers

    @cached_property
    def _index(self) -> _Index:
        index, at = _Index([0], {}, frozenset()), 0
        offers: set[tuple[str, str]] = set()
        with self._path.open("rb") as file:
            for number, line in enumerate(file):
                fields = orjson.loads(line)
                at += len(line)
                index.offsets.append(at)
                index.ids[fields["id"]] = number
                offers.add((fields["kind"], fields.get("specialty", "")))
        return index._replace(offers=frozenset(offers))

    def __getstate__(self) -> dict[str, Any]:
        return {"_path": self._path}


class _Index(NamedTuple):
    offsets: list[int]  # of every line, and of the end
    ids: dict[str, int]
    offers: frozenset[tuple[str, str]]


class TaskSet(NamedTuple):
    """One data set of a run: what is trained on, and what is held out."""

    train: QuestionStore
    held_out: QuestionStore


@dataclass(frozen=True)
class Tasks(Universe):
    """All that a run asks: its worlds, and its data sets under the names that phases mix."""

    sets: dict[str, TaskSet] = field(default_factory=dict)
    seed: int = 0

    @classmethod
    def join(cls, universe: Universe, sets: dict[str, TaskSet], seed: int) -> Tasks:
        return cls(universe.training, universe.held_out, sets, seed)

    def offers(self, source_name: str) -> frozenset[tuple[str, str]]:
        return self.sets[source_name].train.offers if source_name in self.sets else super().offers(source_name)

    def question(self, question_id: str) -> Question:
        name, length = without_length(question_id)
        for each in self.sets.values():
            for store in each:
                if (found := store.find(name)) is not None:
                    return found.thinking_for(length) if length else found
        return super().question(question_id)

    def training_question(self, source_name: str, index: int) -> Question:
        """The `index`-th question of a source: a data set in an order of its own, and in another one every time it is through."""
        if source_name not in self.sets:
            return super().training_question(source_name, index)
        store = self.sets[source_name].train
        epoch, place = divmod(index, len(store))
        return store[int(_order(len(store), f"{self.seed}/{source_name}/{epoch}")[place])]

    def asked(self, purpose: str) -> HeldOutQuestions:
        return HeldOut(self.held_out[purpose], self.sets, HALVES[purpose]) if purpose in HALVES else self.held_out[purpose]


class HeldOut:
    """The held-out questions for one purpose: a world's, and of every data set one half."""

    def __init__(self, world: World, sets: dict[str, TaskSet], half: int) -> None:
        self._world, self._sets, self._half = world, sets, half

    def offers(self, source_name: str) -> frozenset[tuple[str, str]]:
        return self._sets[source_name].held_out.offers if source_name in self._sets else self._world.offers(source_name)

    def questions(
        self, source_name: str, count: int, wanted: Callable[[Question], bool] = lambda question: True
    ) -> list[Question]:
        """`count` questions of those that are wanted; of a data set that has fewer, all."""
        if source_name not in self._sets:
            return self._world.questions(source_name, count, wanted)
        store = self._sets[source_name].held_out
        found: list[Question] = []
        for number in _order(len(store), source_name)[self._half :: 2]:
            if len(found) == count:
                break
            if wanted(question := store[int(number)]):
                found.append(question)
        return found


@lru_cache(maxsize=16)  # a data set's order is asked for question by question; those of epochs gone by are dropped
def _order(count: int, seed: str) -> npt.NDArray[np.int64]:
    """A random order of so many numbers."""
    return np.random.default_rng(zlib.crc32(seed.encode())).permutation(count)
