"""Evidence broken on purpose, one promise at a time: a suite that finds nothing in a broken run proves nothing of a whole one."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from medr3.chaos.evidence import Evidence
from trajectories.audit import EVENTS_FILE, audit
from trajectories.events import Event, EventKind

Breakage = Callable[[Evidence], Evidence]
BREAKAGES: dict[str, Breakage] = {}


def breakage(breaks: Breakage) -> Breakage:
    BREAKAGES[breaks.__name__.replace("_", "-")] = breaks
    return breaks


def _rewritten(evidence: Evidence, events: list[Event]) -> Evidence:
    """As if the run had written these events: the audit reads them from a copy of its files."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        shutil.copytree(evidence.folder / "trajectories", folder / "trajectories")
        lines = [json.dumps({"kind": event.kind.value, "time": event.time, **event.fields}) for event in events]
        (folder / EVENTS_FILE).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return replace(evidence, events=events, audit=audit(folder))


def _last(events: list[Event], kind: EventKind) -> int:
    return max(index for index, event in enumerate(events) if event.kind is kind)


@breakage
def one_ending_dropped(evidence: Evidence) -> Evidence:
    """A group that was trained, of which the events say nothing."""
    at = _last(evidence.events, EventKind.TRAINED)
    return _rewritten(evidence, [*evidence.events[:at], *evidence.events[at + 1 :]])


@breakage
def one_group_twice(evidence: Evidence) -> Evidence:
    """A group that ends a second time."""
    at = _last(evidence.events, EventKind.TRAINED)
    again = Event(EventKind.DROPPED, evidence.events[at].time, {"group_id": evidence.events[at]["group_id"], "reason": "stale"})
    return _rewritten(evidence, [*evidence.events[: at + 1], again, *evidence.events[at + 1 :]])


@breakage
def one_version_reused(evidence: Evidence) -> Evidence:
    """Weights published under a version that was used before."""
    at = _last(evidence.events, EventKind.PUBLISHED)
    return _rewritten(evidence, [*evidence.events[: at + 1], evidence.events[at], *evidence.events[at + 1 :]])


@breakage
def one_engine_stale(evidence: Evidence) -> Evidence:
    """An engine that serves versions without having acknowledged any."""
    engine = evidence.events[_last(evidence.events, EventKind.TRAINED)]["engine_id"]
    refused = [  # in place: a resume counts the events before it
        replace(event, fields=event.fields | {"ok": False})
        if event.kind is EventKind.ACK and event["engine_id"] == engine
        else event
        for event in evidence.events
    ]
    return _rewritten(evidence, refused)


@breakage
def one_step_lost(evidence: Evidence) -> Evidence:
    """A step of which nothing is known."""
    step = evidence.events[_last(evidence.events, EventKind.TRAINED)]["step"] - 1
    kept = [event for event in evidence.events if event.kind is not EventKind.TRAINED or event["step"] != step]
    return replace(evidence, events=kept)


@breakage
def wrong_weights_loaded(evidence: Evidence) -> Evidence:
    """A resume that publishes something else than the checkpoint held."""
    resumed = False
    changed = []
    for event in evidence.events:
        resumed = resumed or event.kind is EventKind.RESUMED
        if resumed and event.kind is EventKind.PUBLISHED:
            event = replace(event, fields=event.fields | {"checksum": "another"})
        changed.append(event)
    lives = [replace(life, saved_state="a", loaded_state="b") for life in evidence.lives]
    return replace(evidence, events=changed, lives=lives)


@breakage
def a_failure_reported_as_success(evidence: Evidence) -> Evidence:
    """A run that ends with 0 without having come to its end."""
    return replace(evidence, events=[event for event in evidence.events if event.kind is not EventKind.STOPPED])


@breakage
def another_decision(evidence: Evidence) -> Evidence:
    """A phase that is left one step later than the twin's."""
    changed = [
        replace(event, fields=event.fields | {"step": event["step"] + 1}) if event.kind is EventKind.PHASE_LEFT else event
        for event in evidence.events
    ]
    return replace(evidence, events=changed)


@breakage
def another_curve(evidence: Evidence) -> Evidence:
    """Held-out accuracies that are nothing like the twin's."""
    changed = {
        stage: {phase: (float(accuracy < 0.5), n) for phase, (accuracy, n) in phases.items()}
        for stage, phases in evidence.heldout.items()
    }
    return replace(evidence, heldout=changed)


@breakage
def a_fault_not_survived(evidence: Evidence) -> Evidence:
    """A fault after which nothing was trained any more."""
    return replace(evidence, faults=[replace(fault, recovered_s=None) for fault in evidence.faults])


@breakage
def a_process_left(evidence: Evidence) -> Evidence:
    """A process that outlives its run."""
    return replace(evidence, processes_left=["4711 (VLLM::EngineCore)"])
