"""How long until a run answers held-out questions well enough, and how many tokens that takes: read from what runs wrote down.

::

    events.jsonl    probes of one phase's questions, with their time ─┐
    metrics.jsonl   model tokens and seconds of the steps until then ─┴▶ first probe at the accuracy whose next probe is there too
    heldout.jsonl   all kinds of questions, but only where a phase ended ▶ figures beside it

Probes ask the questions of the phase that is on. Runs are therefore compared on one phase's questions: those of the first run's last
phase. A run that trained other phases before was not asked them meanwhile; where its first probe of them is good enough already, what
it took is an upper bound, and is said to be one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from bench.harness import Result, figure, ratio, result
from trajectories.events import Event, EventKind, read_events
from trajectories.lineage import surviving

ACCURACY = 0.8
NO_WORSE = 1.0  # another run takes at least as much as the first
Z_95 = 1.959964
SHOWN_SETTINGS = 8  # of those in which two runs differ
# Settings of a run that say nothing of what it learns from whom.
_OF_THE_FOLDER = ("run.name", "run.folder", "run.ray_cpus", "run.checkpoint_every", "run.keep_", "tracking.")
# Settings of a phase that decide which held-out questions it is asked, and how.
_ASKED = ("mixture", "kinds", "specialties", "retrieval", "retrieval_mode", "max_searches", "top_k")


class RunRefused(Exception):
    """A folder that cannot answer the question; one line."""


class Probe(NamedTuple):
    """One examination, and what the run had used until it was over."""

    step: int
    score: float
    n: int
    tokens: float  # that the model wrote for training
    steps_s: float  # in steps: no probes, reports, checkpoints in between, no pauses
    training_s: float  # since the first phase was entered, without the time in which no process ran
    run_s: float  # since the run began: start-up and cold start are in it


class Crossing(NamedTuple):
    """Where an accuracy was reached, and the probe before, which was below; None where there was none."""

    at: Probe
    before: Probe | None


@dataclass(frozen=True)
class Course:
    """What one run says about itself."""

    name: str
    settings: dict[str, Any]  # by dotted names
    probes: list[tuple[str, Probe]]  # with the phase whose questions they asked
    reports: list[tuple[str, float, Probe]]  # stage, accuracy over all kinds, and what the run had used by then
    paused_s: float
    steps_taken_back: int

    @property
    def last_phase(self) -> str:
        return self.probes[-1][0]

    def of(self, phase: str) -> list[Probe]:
        return [probe for name, probe in self.probes if name == phase]


def run(folders: Sequence[Path], accuracy: float = ACCURACY, phase: str = "") -> Result:
    """The first run beside each other one; `phase` names whose questions count, by default those of the first one's last phase."""
    courses = [read_course(folder, name) for folder, name in zip(folders, _names(folders), strict=True)]
    phase = phase or courses[0].last_phase
    for course in courses:
        if not course.of(phase):
            asked = ", ".join(dict.fromkeys(name for name, _ in course.probes))
            raise RunRefused(
                f"{course.name}: was never probed with the questions of {phase}, only of {asked}: name another --phase"
            )
    for other in courses[1:]:
        refuse_other_questions(courses[0], other, phase)
    figures, ratios, notes = [], [], [_on_the_curve(courses[0].of(phase)[0].n, phase, accuracy)]
    for course in courses:
        more, said = told(course, course.of(phase), accuracy)
        figures += more
        notes += said
    for other in courses[1:]:
        found, said = beside(courses[0], other, phase, accuracy)
        ratios += found
        notes += [*said, differences(courses[0], other)]
    return result(figures, ratios, notes)


def crossing(probes: Sequence[Probe], accuracy: float) -> Crossing | None:
    """The first probe at this accuracy whose next probe is there too; one good probe may be luck.

    Example:
        >>> probes = [Probe(step, score, 200, 0, 0, 0, 0) for step, score in enumerate([0.7, 0.8, 0.79, 0.81, 0.85])]
        >>> crossing(probes, 0.8).at.step, crossing(probes, 0.8).before.step, crossing(probes, 0.9)
        (3, 2, None)
    """
    for place, (probe, after) in enumerate(pairwise(probes)):
        if probe.score >= accuracy and after.score >= accuracy:
            return Crossing(probe, probes[place - 1] if place else None)
    return None


def told(course: Course, probes: Sequence[Probe], accuracy: float) -> tuple[list[Result], list[str]]:
    """One run's figures: what it took, or how high it came."""
    name, best = course.name, max(probes, key=lambda probe: probe.score)
    figures, notes = [], []
    if (found := crossing(probes, accuracy)) is None:
        figures.append(figure(f"{name}: highest accuracy, at step {best.step}", best.score, ""))
        last = probes[-1]
        unconfirmed = ", the last one, which no other confirms" if last.score >= accuracy else ""
        notes.append(f"{name}: {accuracy:g} was not reached in {last.step} steps and {last.tokens:,.0f} tokens{unconfirmed}")
    else:
        margin = Z_95 * math.sqrt(accuracy * (1 - accuracy) / found.at.n)  # of a share of n answers, 95 % of the time
        early, late = crossing(probes, accuracy - margin), crossing(probes, accuracy + margin)
        for what, unit, value in _MEASURES:
            row = figure(f"{name}: {what}", value(found.at), unit)
            if early is not None and late is not None:
                row |= {"lowest": value(early.at), "highest": value(late.at)}
            figures.append(row)
        notes.append(
            f"{name}: {_where(found)}" + ("" if late else f"; {accuracy + margin:.3f}, the other end, was not reached")
        )
    figures += [figure(f"{name}: all kinds, after {stage}, step {at.step}", score, "") for stage, score, at in course.reports]
    if (whole := _reported(course.reports, accuracy)) is not None:
        figures.append(figure(f"{name}: tokens to {accuracy:g} over all kinds, at most", whole.tokens, "tokens"))
    if course.paused_s:
        notes.append(f"{name}: {course.paused_s:,.0f} s in which it did not run are left out")
    if course.steps_taken_back:
        notes.append(f"{name}: {course.steps_taken_back} steps were taken back: their time counts, their tokens do not")
    return figures, notes


def beside(first: Course, other: Course, phase: str, accuracy: float) -> tuple[list[Result], list[str]]:
    """What the other run took over what the first one took; in words where there is no such number."""
    ours, theirs = (crossing(course.of(phase), accuracy) for course in (first, other))
    if ours is None:
        return [], [f"no ratio to {other.name}: {first.name} did not reach {accuracy:g}"]
    if theirs is None:
        last = other.of(phase)[-1]
        factor = last.tokens / ours.at.tokens if ours.at.tokens else math.inf
        return [], [f"{other.name}: did not reach {accuracy:g} with {factor:.2f} times the tokens that {first.name} took"]
    if theirs.before is None or not ours.at.tokens:
        return [], [f"no ratio to {other.name}: its first probe of these questions was there already"]
    ratios = [
        ratio(f"{what} to {accuracy:g}: {other.name} over {first.name}", value(theirs.at) / value(ours.at), NO_WORSE)
        for what, _, value in _COMPARED
    ]
    return ratios, [] if ours.before else [
        f"{first.name} took that much at most, so these ratios to {other.name} are at least that"
    ]


_MEASURES: tuple[tuple[str, str, Callable[[Probe], float]], ...] = (
    ("tokens", "tokens", lambda probe: probe.tokens),
    ("time in steps", "s", lambda probe: probe.steps_s),
    ("time in training", "s", lambda probe: probe.training_s),
    ("time since its start", "s", lambda probe: probe.run_s),
    ("steps", "steps", lambda probe: float(probe.step)),
)
_COMPARED = _MEASURES[:3]  # since its start, a run may have made a cold start that another was given


def _on_the_curve(n: int, phase: str, accuracy: float) -> str:
    margin = Z_95 * math.sqrt(accuracy * (1 - accuracy) / n)
    return (
        f"accuracy of probes: {n} held-out questions of {phase}, the same for runs of one seed; the spread is where"
        f" {accuracy - margin:.3f} and {accuracy + margin:.3f} were reached, the 95 % of such a share"
    )


def _where(found: Crossing) -> str:
    if found.before is None:
        return f"the first probe of these questions, at step {found.at.step}, was there already: it took that much at most"
    return f"reached behind step {found.before.step} ({found.before.score:.3f}), by step {found.at.step} ({found.at.score:.3f})"


def _reported(reports: Sequence[tuple[str, float, Probe]], accuracy: float) -> Probe | None:
    """The first report from which on all are good enough; reports come only where a phase ends."""
    at = None
    for _, score, probe in reports:
        at = (at or probe) if score >= accuracy else None
    return at


# Reading


def read_course(folder: Path, name: str) -> Course:
    """Everything from the files of a run, which may still go on: what its last lines do not tell yet is left out."""
    events = _events(folder)
    lineage = surviving(events)
    clock = Clock.of(events)
    rows = _rows(folder)
    used = _used(rows, folder)

    def at(step: int, score: float, n: int, time: float) -> Probe:
        return Probe(step, score, n, *used[step], clock.training(time), clock.run(time))

    probes = [
        (str(event["phase"]), at(event["step"], event["score"], event["n"], event.time))
        for event in lineage.events
        if event.kind is EventKind.PROBE and event["step"] in used
    ]
    if not probes:
        raise RunRefused(f"{folder}: has no probe on held-out questions: name a run that was probed")
    left = {str(event["phase"]): event for event in lineage.events if event.kind is EventKind.PHASE_LEFT}
    reports = []
    for stage, score, n in _reports(folder):
        if stage in left and left[stage]["step"] in used:
            reports.append((stage, score, at(left[stage]["step"], score, n, left[stage].time)))
        elif stage not in left and not reports:  # what the run began with
            reports.append((stage, score, at(0, score, n, clock.training_began)))
    taken_back = {event["step"] for event in lineage.rolled_back if event.kind is EventKind.TRAINED}
    return Course(name, _settings(folder), probes, reports, clock.paused(events[-1].time), len(taken_back))


@dataclass(frozen=True)
class Clock:
    """Seconds of a run without those in which no process of it ran.

    Example: it began at 0, trained from 10, paused at 20 and was there again at 50.
        >>> clock = Clock(0.0, 10.0, ((20.0, 50.0),))
        >>> clock.run(60.0), clock.training(60.0), clock.training(15.0)
        (30.0, 20.0, 5.0)
    """

    run_began: float
    training_began: float
    gaps: tuple[tuple[float, float], ...]

    @classmethod
    def of(cls, events: Sequence[Event]) -> Clock:
        """A process says that it resumed once it has connected; what it did before that counts as not running."""
        entered = [event.time for event in events if event.kind is EventKind.PHASE_ENTERED]
        gaps = tuple((before.time, event.time) for before, event in pairwise(events) if event.kind is EventKind.RESUMED)
        return cls(events[0].time, entered[0] if entered else events[0].time, gaps)

    def run(self, time: float) -> float:
        return time - self.run_began - self.paused(time)

    def training(self, time: float) -> float:
        return time - self.training_began - self.paused(time, self.training_began)

    def paused(self, until: float, since: float = -math.inf) -> float:
        return sum(end - start for start, end in self.gaps if start >= since and end <= until)


def _events(folder: Path) -> list[Event]:
    try:
        events = read_events(folder / "events.jsonl").events
    except OSError as error:
        raise RunRefused(f"{folder / 'events.jsonl'}: {error.strerror}: name a run folder, such as runs/demo") from None
    except ValueError as error:
        raise RunRefused(str(error)) from None
    if not events:
        raise RunRefused(f"{folder / 'events.jsonl'}: is empty: name a run that was started")
    return events


def _rows(folder: Path) -> list[dict[str, Any]]:
    return list(_lines(folder / "metrics.jsonl"))


def _lines(path: Path) -> Iterable[dict[str, Any]]:
    """Whole lines; of a run that died the last one may be cut off."""
    try:
        *lines, _cut_off = path.read_bytes().split(b"\n") if path.exists() else [b""]
    except OSError as error:
        raise RunRefused(f"{path}: cannot be read: {error.strerror}") from None
    for number, line in enumerate(lines, start=1):
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise RunRefused(f"{path}:{number}: is no JSON object: the file is damaged")
        yield found


def _used(rows: Sequence[dict[str, Any]], folder: Path) -> dict[int, tuple[float, float]]:
    """By step: model tokens and seconds of all steps until its end."""
    used, seconds = {0: (0.0, 0.0)}, 0.0
    for row in rows:
        try:
            seconds += float(row["time/step"])
            used[int(row["step"])] = float(row["run/model_tokens"]), seconds
        except (KeyError, TypeError, ValueError):
            raise RunRefused(
                f"{folder / 'metrics.jsonl'}: step {row.get('step')} does not tell its time/step and run/model_tokens:"
                " the file is damaged, or of an earlier version"
            ) from None
    return used


def _reports(folder: Path) -> list[tuple[str, float, int]]:
    """Accuracy over all kinds after each stage, and of how many questions; a later line of the same stage and kind counts."""
    cells: dict[str, dict[str, list[bool]]] = {}
    for number, row in enumerate(_lines(folder / "heldout.jsonl"), start=1):
        try:
            cells.setdefault(str(row["stage"]), {})[str(row["phase"])] = [bool(right) for right in row["correct"].values()]
        except (KeyError, AttributeError):
            raise RunRefused(f"{folder / 'heldout.jsonl'}:{number}: is no report: the file is damaged") from None
    found = {stage: [right for kind in kinds.values() for right in kind] for stage, kinds in cells.items()}
    return [(stage, sum(answers) / len(answers), len(answers)) for stage, answers in found.items() if answers]


# What was asked, and under which settings


def _settings(folder: Path) -> dict[str, Any]:
    try:
        return dict(flattened(json.loads((folder / "config.json").read_text(encoding="utf-8"))))
    except (OSError, ValueError, RecursionError) as error:
        raise RunRefused(f"{folder / 'config.json'}: cannot be read ({error}): runs are compared by their settings") from None


def flattened(value: Any, name: str = "") -> Iterable[tuple[str, Any]]:
    """A nested object by dotted names; a list of named objects by these names.

    Example:
        >>> dict(flattened({"a": {"b": 1}, "phases": [{"name": "joint", "train": True}], "c": [1, 2]}))
        {'a.b': 1, 'phases.joint.name': 'joint', 'phases.joint.train': True, 'c': [1, 2]}
    """
    if isinstance(value, list) and value and all(isinstance(each, dict) and "name" in each for each in value):
        value = {str(each["name"]): each for each in value}
    if isinstance(value, dict) and value:
        for key, each in value.items():
            yield from flattened(each, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def refuse_other_questions(first: Course, other: Course, phase: str) -> None:
    """Accuracies on other questions cannot be laid beside each other."""
    for name in sorted(first.settings.keys() | other.settings.keys()):
        asked = name.startswith(("world.", "datasets", *(f"curriculum.phases.{phase}.{each}" for each in _ASKED)))
        if (asked or name == "evaluation.probe_questions") and first.settings.get(name) != other.settings.get(name):
            raise RunRefused(
                f"{other.name}: was asked other questions than {first.name}: {name} is {_shown(other.settings.get(name))},"
                f" not {_shown(first.settings.get(name))}"
            )


def differences(first: Course, other: Course) -> str:
    """In which settings the two runs differ."""
    names = sorted(first.settings.keys() | other.settings.keys())
    differ = [
        f"{name} {_shown(other.settings.get(name))}"
        for name in names
        if first.settings.get(name) != other.settings.get(name) and not name.startswith(_OF_THE_FOLDER)
    ]
    more = f", and {len(differ) - SHOWN_SETTINGS} more" if len(differ) > SHOWN_SETTINGS else ""
    return f"{other.name} differs from {first.name} in: {', '.join(differ[:SHOWN_SETTINGS]) or 'nothing'}{more}"


def _shown(value: Any) -> str:
    return json.dumps(value)[:80]


def _names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart, without what all of them end with.

    Example:
        >>> _names([Path("a/full/seed-1"), Path("a/joint/seed-1")]), _names([Path("runs/demo")])
        (['full', 'joint'], ['demo'])
    """
    parts = [folder.resolve().parts for folder in folders]
    if len(set(parts)) < len(parts):
        raise RunRefused("a run was named twice: name runs that differ")
    while len(parts) > 1 and len({part[-1:] for part in parts}) == 1:
        parts = [part[:-1] for part in parts]
    lengths = range(1, max(map(len, parts)) + 1)
    shortest = next(length for length in lengths if len({part[-length:] for part in parts}) == len(parts))
    return ["/".join(part[-shortest:]) for part in parts]
