"""What a run asks: its worlds, and the data sets of its configuration, read once and kept in its folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import xxhash

from medr3.config import RunConfig
from medr3.errors import UserError
from tasks.config import DatasetConfig
from tasks.contamination import question_key
from tasks.library import QuestionStore, Tasks, TaskSet
from tasks.prompting import question_prompt
from tasks.quarantine import Quarantine
from tasks.questions import Question
from tasks.reading import Dataset
from tasks.rows import FileRefused
from tasks.vocabulary import vocabulary
from tasks.world import Universe

FOLDER = "questions"
FEWEST_HELD_OUT = 2  # one that decides and one that is reported


def open_tasks(config: RunConfig, say: Callable[[str], None] = print) -> Universe:
    """The worlds of a configuration, with its data sets; UserError where one of those cannot be used.

    The run's folder keeps a copy of every data set; what is not there yet is read.
    """
    universe = Universe.build(config.world, config.run.seed)
    if not config.datasets:
        return universe
    sets = {name: _open(name, each, config, say) for name, each in config.datasets.items()}
    _check_phases(config, sets)
    return Tasks.join(universe, sets, config.run.seed)


def tasks_of(run: Path, config: RunConfig) -> Universe:
    """What a run in this folder asked, from its own copies: nothing is read anew, and nothing written."""
    universe, sets = Universe.build(config.world, config.run.seed), {}
    for name in config.datasets:
        sets[name] = TaskSet(*(QuestionStore(_copy_of(run, name, part)) for part in TaskSet._fields))
    return Tasks.join(universe, sets, config.run.seed) if sets else universe


def _copy_of(run: Path, name: str, part: str) -> Path:
    return run / FOLDER / f"{name}.{part}.jsonl"


def _check_phases(config: RunConfig, sets: dict[str, TaskSet]) -> None:
    """Every phase finds what it asks for in every part of the data sets that it mixes."""
    for phase in config.curriculum.phases:
        for source in phase.mixture.keys() & sets.keys():
            for part, store in zip(TaskSet._fields, sets[source], strict=True):
                if not any(
                    (not phase.kinds or phase.kinds.get(kind, 0) > 0)  # type: ignore[call-overload]
                    and (not phase.specialties or phase.specialties.get(specialty, 0) > 0)
                    for kind, specialty in store.offers
                ):
                    had = ", ".join(sorted({kind for kind, _ in store.offers}))
                    raise UserError(
                        f"curriculum: phase {phase.name!r} asks {source} for kinds and specialties that datasets.{source}.{part} does"
                        f" not have; it has {had}, and {len({of for _, of in store.offers})} specialties"
                    )


def _open(name: str, dataset: DatasetConfig, config: RunConfig, say: Callable[[str], None]) -> TaskSet:
    paths = [_copy_of(config.run.folder, name, part) for part in TaskSet._fields]
    opened = TaskSet(*(QuestionStore(path) for path in paths))
    if not all(path.exists() for path in paths):
        _copy(name, dataset, paths, say, tiny=config.model.path is None)
    if not len(opened.train) or len(opened.held_out) < FEWEST_HELD_OUT:
        raise UserError(
            f"datasets.{name}: has {len(opened.train)} questions to train on and {len(opened.held_out)} held out: there must be some"
        )
    return opened


def _copy(name: str, dataset: DatasetConfig, paths: list[Path], say: Callable[[str], None], *, tiny: bool) -> None:
    """Reads both parts; what is held out is no longer trained on, not even in other clothes."""
    held_out: set[int | str] = set()
    dropped = 0

    def kept(part: str) -> Iterator[Question]:
        nonlocal dropped, held_out
        for question in _read(name, part, dataset, paths[0].parent, say):
            if tiny:
                _refuse_unknown_words(name, question)
            key = xxhash.xxh3_64_intdigest(question_key(question))
            if part == "held_out":
                held_out |= {key, question.id}
            elif key in held_out or question.id in held_out:
                dropped += 1
                continue
            yield question.model_copy(update={"source": name})

    QuestionStore.build(paths[1], kept("held_out"))
    QuestionStore.build(paths[0], kept("train"))
    if dropped:
        say(f"datasets.{name}: {dropped:,} training questions are held out word for word, and are not trained on")


def _read(name: str, part: str, dataset: DatasetConfig, folder: Path, say: Callable[[str], None]) -> Iterator[Question]:
    spec = Dataset.parse(getattr(dataset, part))
    ids: set[str] = set()
    try:
        with Quarantine(folder / f"{name}.{part}.quarantine.jsonl") as quarantine:
            for question in quarantine.questions(spec.read(with_context=dataset.with_context)):
                if question.id not in ids:  # of several files
                    ids.add(question.id)
                    yield question
    except FileRefused as error:
        raise UserError(f"datasets.{name}.{part}: {error}") from None
    if quarantine.malformed > dataset.allow_bad:
        raise UserError(
            f"datasets.{name}.{part}: {quarantine.malformed:,} rows are malformed, and allow_bad is {dataset.allow_bad}; the first:"
            f" {quarantine.first[0]}; all are in {quarantine.path}"
        )
    left_out = sum(quarantine.left_out.values())
    if quarantine.malformed or left_out:
        say(f"datasets.{name}.{part}: {quarantine.malformed:,} malformed rows and {left_out:,} without a question are left out")


_KNOWN = frozenset(vocabulary())


def _refuse_unknown_words(name: str, question: Question) -> None:
    """The tiny model reads the world's words alone; a question of others would be a row of unknown tokens."""
    from tasks.vocabulary import FIRST_SYLLABLES, SECOND_SYLLABLES

    for word in question_prompt(question).split():
        known = word in _KNOWN or word.isdigit() or any(word == a + b for a in FIRST_SYLLABLES for b in SECOND_SYLLABLES)
        if not known:
            raise UserError(
                f"datasets.{name}: question {question.id} says {word[:40]!r}, which the tiny model does not know: set model.path"
            )
