"""All that is known of a run after its faults: its events and rows, how its driver ended each time, what it left behind."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trajectories.audit import EVENTS_FILE, AuditReport, audit
from trajectories.events import Event, EventKind, read_events


@dataclass(frozen=True)
class Injected:
    """A fault that was done to a run."""

    number: int
    kind: str
    target: str
    at: float  # Unix seconds
    must: str  # what the kind promises of the run
    settles: bool  # the run had time to recover from it before the next one
    limit_s: float
    driver_may_end: bool
    driver_ended: bool = False
    recovered_s: float | None = None


@dataclass(frozen=True)
class DriverLife:
    """One process of the driver, from its start to its end."""

    began: float
    ended: float
    code: int  # negative: the signal that ended it
    killed: bool  # by a fault of the plan, or by one that takes the driver with it
    resumed_step: int | None = None  # the manifest's when it was started; None: it began anew
    saved_state: str = ""  # hash of the training state in the checkpoint that it was to load
    loaded_state: str = ""  # and of what its learner held after loading


@dataclass(frozen=True)
class Evidence:
    """What the invariants are told of one run. `twin` is the same run undisturbed; it has none itself."""

    name: str
    folder: Path
    events: list[Event]
    audit: AuditReport
    said: str
    lives: list[DriverLife]
    faults: list[Injected]
    planned: int
    groups_per_step: int
    wants_end: bool  # False: it was asked to stop, and paused
    heldout: dict[str, dict[str, tuple[float, int]]] = field(default_factory=dict)  # stage, phase: accuracy, questions
    processes_left: list[str] = field(default_factory=list)
    shared_left: list[str] = field(default_factory=list)
    files_left: list[str] = field(default_factory=list)
    actors_left: list[str] = field(default_factory=list)
    descriptors: list[tuple[int, int]] = field(default_factory=list)  # of each driver's training: at its beginning, at its end
    same_decisions: bool = True
    twin: Evidence | None = None


def recovery_s(events: Sequence[Event], at: float) -> float | None:
    """Seconds from a moment until a group that was admitted after it had been trained: the whole circle works again.

    Example:
        >>> events = [Event(EventKind.ADMITTED, 1.0, {"group_id": "a"}), Event(EventKind.ADMITTED, 3.0, {"group_id": "b"})]
        >>> events += [Event(EventKind.TRAINED, 4.0, {"group_id": "a"}), Event(EventKind.TRAINED, 6.5, {"group_id": "b"})]
        >>> recovery_s(events, 2.0), recovery_s(events, 5.0)
        (4.5, None)
    """
    admitted: set[str] = set()
    for event in events:
        if event.kind is EventKind.ADMITTED and event.time > at:
            admitted.add(event["group_id"])
        elif event.kind is EventKind.TRAINED and event.time > at and event["group_id"] in admitted:
            return event.time - at
    return None


def ordinary_cycle_s(events: Sequence[Event]) -> list[float]:
    """The same figure for every step of an undisturbed run: what a recovery would take if nothing had happened."""
    published = [event.time for event in events if event.kind is EventKind.PUBLISHED]
    return [seconds for at in published if (seconds := recovery_s(events, at)) is not None]


def start_s(events: Sequence[Event]) -> float:
    """Seconds that the run's first start took, from a cold-started model to its first trained step: a resume needs about as long."""
    began = next((event.time for event in events if event.kind is EventKind.RUN_STARTED), 0.0)
    return next((event.time - began for event in events if event.kind is EventKind.TRAINED), 0.0)


def read_run(folder: Path) -> tuple[list[Event], AuditReport]:
    """From the run's files alone."""
    path = folder / EVENTS_FILE
    return read_events(path).events if path.exists() else [], audit(folder)


def heldout_of(folder: Path) -> dict[str, dict[str, tuple[float, int]]]:
    """Accuracy and number of questions by stage and phase; empty where the run has not ended."""
    path = folder / "summary.json"
    if not path.exists():
        return {}
    told = json.loads(path.read_text(encoding="utf-8"))["heldout_by_phase"]
    return {
        stage: {phase: (figures["accuracy"], figures["n"]) for phase, figures in phases.items()}
        for stage, phases in told.items()
    }


def files_left(folder: Path) -> list[str]:
    """What no part of a run that has ended should leave: unfinished files, and checkpoints that its manifest does not name."""
    left = [str(path.relative_to(folder)) for path in folder.rglob("*unfinished*")]
    manifest = folder / "manifest.json"
    if manifest.exists():
        named = {record["folder"] for record in json.loads(manifest.read_text(encoding="utf-8"))["checkpoints"]}
        made = {str(path.relative_to(folder)) for path in (folder / "checkpoints").glob("step-*")}
        left += sorted(made - named)
    return left
