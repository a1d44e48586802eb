"""What must hold of every run, whatever was done to it. Pure functions: evidence in, one line for each violation out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

from medr3.chaos.evidence import Evidence
from trajectories.events import Event, EventKind
from trajectories.lineage import surviving
from trajectories.schema import WeightVersion

Invariant = Callable[[Evidence], list[str]]
INVARIANTS: dict[str, Invariant] = {}

RESUMABLE = (3, 130)  # the codes with which `medr3 train` says that the same command goes on
# Standard errors between two reports of a held-out stage: exceeded by chance once in 16,000 comparisons.
NOISE = 4.0
# Sockets to processes that died are closed late; what a step or a fault leaked would be a multiple of this within a run.
SPARE_DESCRIPTORS = 100


def invariant(name: str) -> Callable[[Invariant], Invariant]:
    def register(check: Invariant) -> Invariant:
        INVARIANTS[name] = check
        return check

    return register


def check(evidence: Evidence) -> dict[str, list[str]]:
    """Every invariant with its violations; all lists are empty exactly when the run kept all of them."""
    return {name: holds(evidence) for name, holds in INVARIANTS.items()}


@invariant("groups, ages, versions and rows")
def audited(evidence: Evidence) -> list[str]:
    """The audit's promises: each admitted group ends exactly once, no sample is over age, versions only grow and are never used
    twice, no engine serves what it has not acknowledged, and the rows on the disk are those that the events speak of."""
    return list(evidence.audit.violations)


@invariant("each step once")
def steps(evidence: Evidence) -> list[str]:
    """The surviving lineage has every step from 1 to the last, each with a whole batch."""
    trained = Counter(event["step"] for event in surviving(evidence.events).events if event.kind is EventKind.TRAINED)
    missing = sorted(set(range(1, max(trained, default=0) + 1)) - trained.keys())
    uneven = sorted(step for step, groups in trained.items() if groups != evidence.groups_per_step)
    return [f"step {step} was never trained" for step in missing] + [
        f"step {step} was trained on {trained[step]} groups, a batch is {evidence.groups_per_step}" for step in uneven
    ]


@invariant("ended as told")
def ended(evidence: Evidence) -> list[str]:
    """The last driver ended with 0, and the events say the same. No other one said 0, and none but a killed one left without a word."""
    if not evidence.lives:
        return ["the driver was never started"]
    *earlier, last = evidence.lives
    wrong = [] if last.code == 0 else [f"the last driver ended with {last.code}"]
    wrong += [
        f"driver {number} ended with {life.code}"
        for number, life in enumerate(earlier, 1)
        if not _says_so(life.code, life.killed)
    ]
    wanted = EventKind.STOPPED if evidence.wants_end else EventKind.PAUSED
    if not any(event.kind is wanted for event in evidence.events[-1:]):
        wrong.append(f"the last event is {evidence.events[-1].kind if evidence.events else 'missing'}, not {wanted}")
    if "Traceback (most recent call last)" in evidence.said:
        wrong.append("a traceback was shown")
    return wrong


def _says_so(code: int, killed: bool) -> bool:
    return code in RESUMABLE or (killed and code != 0)


@invariant("every fault was survived")
def survived(evidence: Evidence) -> list[str]:
    """All faults of the plan were done; the driver outlived those that it must outlive; the run recovered within the limit."""
    wrong = []
    if len(evidence.faults) < evidence.planned:
        wrong.append(f"only {len(evidence.faults)} of {evidence.planned} faults were done: the run ended before")
    for fault in evidence.faults:
        name = f"fault {fault.number} ({fault.kind})"
        if fault.driver_ended and not fault.driver_may_end:
            wrong.append(f"{name}: the driver ended, but {fault.must}")
        if fault.settles and fault.recovered_s is None:
            wrong.append(f"{name}: nothing that was admitted after it was ever trained")
        elif fault.settles and fault.recovered_s is not None and fault.recovered_s > fault.limit_s:
            wrong.append(f"{name}: recovered after {fault.recovered_s:.0f} s, allowed are {fault.limit_s:.0f} s")
    return wrong


@invariant("resumed bit for bit")
def restored(evidence: Evidence) -> list[str]:
    """What a resume publishes has the checksum of what was published at that step; the whole training state has the checkpoint's hash."""
    wrong = []
    for index, event in enumerate(evidence.events):
        if event.kind is EventKind.RESUMED:
            wrong += _restored_weights(evidence.events, index)
    for number, life in enumerate(evidence.lives, 1):
        if life.saved_state and life.loaded_state and life.saved_state != life.loaded_state:
            wrong.append(
                f"driver {number}: the checkpoint of step {life.resumed_step} holds {life.saved_state}, loaded was {life.loaded_state}"
            )
    return wrong


def _restored_weights(events: list[Event], index: int) -> list[str]:
    resumed = events[index]
    known = events[: resumed.fields.get("position", index)]
    before = [event for event in known if _published(event) and event["step"] == resumed["step"]]
    after = [event for event in events[index:] if _published(event) and _generation(event) == resumed["generation"]]
    if not before or not after:  # killed before it published, or a roll-back to weights of the cold start
        return []
    saved, loaded = before[-1]["checksum"], after[0]["checksum"]
    same = saved == loaded
    return [] if same else [f"resume at step {resumed['step']}: weights {loaded} were published, the checkpoint has {saved}"]


def _published(event: Event) -> bool:
    return event.kind is EventKind.PUBLISHED and "checksum" in event.fields


def _generation(event: Event) -> int:
    return WeightVersion.parse(event["version"]).generation


@invariant("the twin's decisions")
def decided(evidence: Evidence) -> list[str]:
    """Phases are entered and left at the steps and for the reasons of the undisturbed twin."""
    if evidence.twin is None or not evidence.same_decisions:
        return []
    ours, theirs = decisions(evidence.events), decisions(evidence.twin.events)
    if evidence.wants_end and len(ours) < len(theirs):
        return [f"decided {len(ours)} times, the twin {len(theirs)} times"]
    return [f"decided {mine}, the twin {other}" for mine, other in zip(ours, theirs, strict=False) if mine != other]


def decisions(events: list[Event]) -> list[str]:
    """In words, in order, those that survived."""
    kept = [event for event in surviving(events).events if event.kind in (EventKind.PHASE_ENTERED, EventKind.PHASE_LEFT)]
    return [
        f"{event['phase']} {'entered' if event.kind is EventKind.PHASE_ENTERED else 'left by ' + event['left_by']} at step {event['step']}"
        for event in kept
    ]


@invariant("held-out as the twin")
def held_out(evidence: Evidence) -> list[str]:
    """Every stage's accuracy lies within the noise of its questions: |a − b| ≤ 4·√(p(1−p)(1/n + 1/m)) + 1/n."""
    if evidence.twin is None:
        return []
    wrong = []
    for stage, phases in evidence.heldout.items():
        for phase, (accuracy, n) in phases.items():
            other, m = evidence.twin.heldout.get(stage, {}).get(phase, (accuracy, n))
            p = (accuracy * n + other * m) / (n + m)
            allowed = NOISE * math.sqrt(p * (1 - p) * (1 / n + 1 / m)) + 1 / min(n, m)
            if abs(accuracy - other) > allowed:
                wrong.append(f"after {stage}, {phase}: {accuracy:.3f}, the twin {other:.3f}; noise explains {allowed:.3f}")
    return wrong


@invariant("nothing is left behind")
def clean(evidence: Evidence) -> list[str]:
    """No process, actor, shared memory or unfinished file outlives the run, and its driver's descriptors do not pile up."""
    wrong = [f"{what} {each}" for what, found in _left(evidence).items() for each in found]
    for number, (first, last) in enumerate(evidence.descriptors, 1):
        if last - first > SPARE_DESCRIPTORS:
            wrong.append(f"driver {number} had {first} descriptors when it began to train and {last} at its end")
    return wrong


def _left(evidence: Evidence) -> dict[str, list[str]]:
    return {
        "process": evidence.processes_left, "shared memory": evidence.shared_left, "file": evidence.files_left,
        "actor": evidence.actors_left,
    }  # fmt: skip
