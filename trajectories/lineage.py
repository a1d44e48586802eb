"""Which of a run's events still count after its resumes: a resume takes back what its manifest did not contain."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from trajectories.events import Event, EventKind


class Resume(NamedTuple):
    """A restart from the manifest of `step`; rows of an older generation stored for a later step no longer count."""

    generation: int
    step: int


class Lineage(NamedTuple):
    """The surviving events in order, what was rolled back, the resumes, and what does not fit together."""

    events: list[Event]
    rolled_back: list[Event]
    resumes: list[Resume]
    violations: list[str]

    def survives(self, generation: int, step: int) -> bool:
        """Whether what this generation stored for this step belongs to the surviving lineage."""
        return not any(generation < resume.generation and step > resume.step for resume in self.resumes)


def surviving(events: Sequence[Event]) -> Lineage:
    """Rolls back, at each `resumed`, the events behind its manifest.

    How many events the manifest knew says the field `position` of `resumed`; where it is absent, the last `checkpoint` of that
    step marks the place, and where there is none, nothing before the resume counts. What published and acknowledged weights is
    history, not state: it is never rolled back.

    Example:
        >>> events = [Event(EventKind.CHECKPOINT, 0.0, {"step": 1}), Event(EventKind.TRAINED, 1.0, {"step": 2})]
        >>> events.append(Event(EventKind.RESUMED, 2.0, {"generation": 2, "step": 1}))
        >>> [event.kind.value for event in surviving(events).rolled_back]
        ['trained']
    """
    kept: list[tuple[int, Event]] = []
    rolled_back: list[Event] = []
    resumes: list[Resume] = []
    violations: list[str] = []
    for index, event in enumerate(events):
        if event.kind is EventKind.RESUMED:
            resume = Resume(event["generation"], event["step"])
            position = _position(event, kept)
            if position > index:
                violations.append(
                    f"resume at step {resume.step}: its manifest knew {position} events, but only {index} came before"
                )
            dropped = [old for at, old in kept if not _stays(at, old, position)]
            kept = [(at, old) for at, old in kept if _stays(at, old, position)]
            late = [old for _, old in kept if old.kind is EventKind.TRAINED and old["step"] > resume.step]
            early = [old for old in dropped if old.kind is EventKind.TRAINED and old["step"] <= resume.step]
            if late or early:
                violations.append(
                    f"resume at step {resume.step}: its manifest keeps {len(late)} groups trained later "
                    f"and loses {len(early)} trained by then"
                )
            rolled_back += dropped
            resumes.append(resume)
        kept.append((index, event))
    generations = [resume.generation for resume in resumes]
    if any(after <= before for before, after in pairwise(generations)):
        violations.append(f"resumes have generations {generations}; each must be above the one before")
    return Lineage([event for _, event in kept], rolled_back, resumes, violations)


_HISTORY = frozenset(
    {
        EventKind.RUN_STARTED,
        EventKind.RESUMED,
        EventKind.PUBLISHED,
        EventKind.ACK,
        EventKind.ROLLED_BACK,
        EventKind.PAUSED,
        EventKind.STOPPED,
        EventKind.FAILED,
    }
)


def _stays(at: int, event: Event, position: int) -> bool:
    return at < position or event.kind in _HISTORY


def _position(resumed: Event, kept: list[tuple[int, Event]]) -> int:
    if "position" in resumed.fields:
        return int(resumed["position"])
    for at, event in reversed(kept):
        if event.kind is EventKind.CHECKPOINT and event["step"] == resumed["step"]:
            return at + 1
    return 0
