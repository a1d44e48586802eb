"""`medr3 data check` and `import`: what files of questions hold, what is wrong with them, and what an evaluation would see again."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import xxhash

from tasks.contamination import Contamination, Seen, question_key
from tasks.lengths import LengthMixture
from tasks.quarantine import Quarantine
from tasks.questions import Question
from tasks.reading import Dataset

KINDS = ("choice", "number", "text")


@dataclass
class Counts:
    """What one data set holds."""

    name: str
    kinds: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    specialties: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0  # the same question word for word, here or in a file before, whatever its id
    malformed: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    seen: set[int] = field(default_factory=set, repr=False)  # what questions say, as hashes; files may share it

    @property
    def questions(self) -> int:
        return self.kinds.total()

    def add(self, question: Question) -> bool:
        """Counts a question; whether it is the first of its words."""
        self.kinds[question.kind.value] += 1
        self.sources[question.source] += 1
        if question.specialty:
            self.specialties[question.specialty] += 1
        key = xxhash.xxh3_64_intdigest(question_key(question))
        new = key not in self.seen
        self.seen.add(key)
        self.duplicates += not new
        return new

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name, "questions": self.questions, "kinds": dict(self.kinds), "sources": dict(self.sources),
            "specialties": dict(self.specialties.most_common()), "duplicates": self.duplicates, "malformed": self.malformed,
            "left_out": self.left_out,
        }  # fmt: skip


@dataclass
class DataCheck:
    """The whole answer of a check."""

    files: list[Counts]
    against: list[Counts]
    seen: list[Seen]
    quarantine: Quarantine

    def as_dict(self) -> dict[str, Any]:
        hows = Counter(each.how for each in self.seen)
        return {
            "files": [each.as_dict() for each in self.files],
            "against": [each.as_dict() for each in self.against],
            "malformed": {
                "count": self.quarantine.malformed,
                "file": str(self.quarantine.path) if self.quarantine.malformed else None,
                "first": [
                    {"file": str(each.path), "place": each.place, "reason": each.reason} for each in self.quarantine.first
                ],
            },
            "contamination": {
                "evaluated": sum(each.questions for each in self.against),
                **{how: hows[how] for how in ("same", "near", "passage")},
                "seen": [each._asdict() for each in self.seen],
            }
            if self.against
            else None,
        }


def check(names: list[str], against: list[str], format_: str, quarantine: Path) -> DataCheck:
    """Reads everything once; training questions are never kept."""
    with Quarantine(quarantine) as kept:
        evaluated: list[Question] = []
        references = [Counts(name, seen=set()) for name in against]
        for reference in references:
            evaluated.extend(_counted(reference, "", kept))
        contamination = Contamination(evaluated) if against else None
        seen: set[int] = set()
        files = [Counts(name, seen=seen) for name in names]
        for counts in files:
            questions = _counted(counts, format_, kept)
            if contamination is not None:
                contamination.train(questions)
            else:
                for _ in questions:
                    pass
        return DataCheck(files, references, contamination.seen() if contamination is not None else [], kept)


def import_questions(
    names: list[str],
    out: Path,
    *,
    format_: str,
    with_context: bool,
    lengths: LengthMixture | None,
    seed: int,
    allow_bad: int,
    keep_duplicates: bool,
    quarantine: Path,
    against: list[str],
) -> tuple[int, list[Counts], Quarantine, int]:
    """Writes questions into one file of our own format: how many, what was read, and how many were left out because they stand,
    or nearly stand, in what will be evaluated. With too many bad rows there is no file.
    """
    given_away = _giving_away(names, against, format_) if against else set()
    unfinished = out.with_name(f".{out.name}.{os.getpid()}")
    seen: set[int] = set()
    counts = [Counts(name, seen=seen) for name in names]
    ids: set[str] = set()
    try:
        with Quarantine(quarantine) as kept, unfinished.open("w", encoding="utf-8") as file:
            for each in counts:
                questions = _counted(each, format_, kept, with_context=with_context, duplicates=keep_duplicates)
                clean = (question for question in questions if question.id not in given_away)
                for question in lengths.apply(clean, seed) if lengths else clean:
                    if question.id in ids:  # of another file, or a duplicate that is to be kept
                        question = question.model_copy(update={"id": f"{question.id}~{len(ids)}"})
                    ids.add(question.id)
                    file.write(question.model_dump_json(exclude_defaults=True) + "\n")
        if kept.malformed <= allow_bad and ids:
            os.replace(unfinished, out)
    finally:
        unfinished.unlink(missing_ok=True)
    dropped = (
        sum(each.questions for each in counts) - len(ids) - (0 if keep_duplicates else sum(each.duplicates for each in counts))
    )
    return len(ids), counts, kept, dropped


def _giving_away(names: list[str], against: list[str], format_: str) -> set[str]:
    """The ids of questions in which an evaluation would recognise its own; what is malformed is told of when it is read again."""

    def questions(name: str, of: str) -> Iterator[Question]:
        dataset = Dataset.parse(name)
        found = dataset._replace(format=dataset.format or of).read()
        return (each for each in found if isinstance(each, Question))

    contamination = Contamination(chain.from_iterable(questions(name, "") for name in against))
    for name in names:
        contamination.train(questions(name, format_))
    return contamination.giving_away()


def _counted(
    counts: Counts, format_: str, kept: Quarantine, *, with_context: bool = False, duplicates: bool = True
) -> Iterator[Question]:
    dataset = Dataset.parse(counts.name)
    dataset = dataset._replace(format=dataset.format or format_)
    bad, left_out = kept.malformed, dict(kept.left_out)
    for question in kept.questions(dataset.read(with_context=with_context)):
        if counts.add(question) or duplicates:
            yield question
    counts.malformed = kept.malformed - bad
    counts.left_out = {why: n - left_out.get(why, 0) for why, n in kept.left_out.items() if n > left_out.get(why, 0)}
