"""Does a run keep its promises? Answered from its files alone: events.jsonl and trajectories/*.parquet."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from trajectories.events import Event, EventKind, read_events
from trajectories.groups import Outcome
from trajectories.lineage import Lineage, surviving
from trajectories.rules import broken_rows, flat, lengths, owners
from trajectories.schema import WeightVersion
from trajectories.store import iterate

EVENTS_FILE = "events.jsonl"
TRAJECTORIES_FOLDER = "trajectories"

_ENDS = {EventKind.TRAINED: Outcome.TRAINED, EventKind.DROPPED: Outcome.DROPPED, EventKind.VOIDED: Outcome.VOIDED}


@dataclass(slots=True)
class AuditReport:
    """What the audit found. `violations` is empty exactly when every promise was kept."""

    violations: list[str] = field(default_factory=list)
    admitted: int = 0
    trained: int = 0
    dropped: int = 0
    voided: int = 0
    open: list[str] = field(default_factory=list)  # group ids without an outcome, allowed only before the run's end
    rolled_back: int = 0  # groups whose outcome a resume took back
    rows: int = 0  # stored rows of the surviving lineage
    rolled_back_rows: int = 0
    trained_tokens: int = 0
    max_age: int = 0
    published: int = 0
    finished: bool = False  # the run said that it had stopped
    truncated: bool = False  # a crash cut the last line of events.jsonl

    @property
    def ok(self) -> bool:
        return not self.violations


def audit(run_folder: Path | str) -> AuditReport:
    """Checks a run, finished or not.

    The promises: every admitted group has exactly one outcome; no token that the model did not sample carries loss; no trained
    token is older than the run's `max_staleness`; weight versions only grow and are never used twice; an engine served only
    versions that it had acknowledged; the stored rows are those that the events speak of.

    A truncated last line is no violation, for a crash may leave one. Anything else that is wrong becomes one line of words.
    """
    report = _audited(Path(run_folder))
    report.violations = [" ".join(line.split()) for line in report.violations]  # names may hold anything
    return report


def _audited(folder: Path) -> AuditReport:
    report = AuditReport()
    try:
        events, report.truncated = read_events(folder / EVENTS_FILE)
    except (OSError, ValueError) as error:
        report.violations.append(f"events cannot be read: {error}")
        return report
    started = [event for event in events if event.kind is EventKind.RUN_STARTED]
    if not started:
        report.violations.append("no run_started event: the run's max_staleness is unknown")
        return report
    lineage = surviving(events)
    report.violations += lineage.violations
    report.finished = events[-1].kind is EventKind.STOPPED
    report.rolled_back = len({event["group_id"] for event in lineage.rolled_back if event.kind in _ENDS})
    endings = _audit_outcomes(lineage, report)
    acked = _audit_versions(events, report)
    try:
        rows = _audit_rows(folder / TRAJECTORIES_FOLDER, lineage, endings, acked, int(started[0]["max_staleness"]), report)
    except (OSError, ValueError) as error:
        report.violations.append(f"rows cannot be read: {error}")
        return report
    for group_id, ending in endings.items():
        if ending.kind is EventKind.TRAINED and rows[group_id] != ending["episodes"]:
            report.violations.append(
                f"group {group_id}: trained on {ending['episodes']} episodes, but {rows[group_id]} rows are stored"
            )
    return report


def _audit_outcomes(lineage: Lineage, report: AuditReport) -> dict[str, Event]:
    """Exactly one outcome for each admitted group; returns it by group."""
    admitted: set[str] = set()
    endings: dict[str, Event] = {}
    for event in lineage.events:
        if event.kind is EventKind.ADMITTED:
            if event["group_id"] in admitted:
                report.violations.append(f"group {event['group_id']}: admitted twice")
            admitted.add(event["group_id"])
        elif event.kind in _ENDS:
            group_id = event["group_id"]
            if group_id not in admitted:
                report.violations.append(f"group {group_id}: {event.kind} without having been admitted")
            if group_id in endings:
                report.violations.append(f"group {group_id}: ended twice, {endings[group_id].kind} and {event.kind}")
            endings[group_id] = event
    outcomes = Counter(_ENDS[ending.kind] for ending in endings.values())
    report.admitted = len(admitted)
    report.trained, report.dropped, report.voided = (outcomes[outcome] for outcome in Outcome)
    report.open = sorted(admitted - endings.keys())
    if report.finished and report.open:
        report.violations.append(
            f"{len(report.open)} groups have no outcome although the run has stopped, {report.open[0]} first"
        )
    return endings


def _audit_versions(events: list[Event], report: AuditReport) -> dict[WeightVersion, set[str]]:
    """Versions only grow; returns for each version the engines whose last word on it was yes."""
    acked: dict[WeightVersion, set[str]] = defaultdict(set)
    published: list[WeightVersion] = []
    for event in events:
        if event.kind is EventKind.PUBLISHED:
            version = WeightVersion.parse(event["version"])
            if published and version <= max(published):
                word = "twice" if version in published else f"after {max(published)}"
                report.violations.append(f"version {version}: published {word}; versions must only grow")
            published.append(version)
        elif event.kind is EventKind.ACK:
            version = WeightVersion.parse(event["version"])
            if version not in published:
                report.violations.append(f"version {version}: engine {event['engine_id']} answered before it was published")
            (acked[version].add if event["ok"] else acked[version].discard)(event["engine_id"])
    report.published = len(published)
    return acked


def _audit_rows(
    folder: Path,
    lineage: Lineage,
    endings: dict[str, Event],
    acked: dict[WeightVersion, set[str]],
    max_staleness: int,
    report: AuditReport,
) -> Counter[str]:
    """Checks the surviving rows, one file at a time; returns the number of trained rows by group."""
    admissions = {event["group_id"]: event for event in lineage.events if event.kind is EventKind.ADMITTED}
    trained_rows: Counter[str] = Counter()
    episodes: Counter[str] = Counter()
    for stored, table in iterate(folder):
        if not lineage.survives(stored.generation, stored.step):
            report.rolled_back_rows += table.num_rows
            continue
        report.rows += table.num_rows
        for row, wrong in broken_rows(table).items():
            report.violations.append(f"{stored.path.name}, row {row}: {'; '.join(wrong)}")
        episodes.update(table["episode_id"].to_pylist())
        report.violations += _against_events(table, stored.path.name, admissions, endings)
        is_trained = np.asarray(table["outcome"].to_numpy()) == Outcome.TRAINED.value
        trained = table.filter(pa.array(is_trained))
        trained_rows.update(trained["group_id"].to_pylist())
        report.trained_tokens += int(np.count_nonzero(flat(trained, "loss_mask").to_numpy(zero_copy_only=False)))
        _audit_ages(trained, stored.path.name, max_staleness, lineage, report)
        report.violations += _unacknowledged(trained, stored.path.name, endings, acked)
    report.violations += [f"episode {name}: stored {n} times" for name, n in episodes.items() if n > 1]
    return trained_rows


def _against_events(table: pa.Table, name: str, admissions: dict[str, Event], endings: dict[str, Event]) -> list[str]:
    """Each group of the file as the events tell it; one line for each group that differs."""
    columns = ("group_id", "question_id", "phase", "outcome", "trained_step")
    wrong = []
    for row in _distinct(table, columns):
        group_id, admission, ending = row["group_id"], admissions.get(row["group_id"]), endings.get(row["group_id"])
        if admission is None or ending is None:
            wrong.append(f"{name}: rows of group {group_id}, which {'has no outcome' if admission else 'was never admitted'}")
            continue
        told = {"question_id": admission["question_id"], "phase": admission["phase"], "outcome": _ENDS[ending.kind].value}
        if ending.kind is EventKind.TRAINED:
            told["trained_step"] = ending["step"]
        wrong += [
            f"{name}: group {group_id} has {column} {row[column]!r}, the events say {value!r}"
            for column, value in told.items()
            if row[column] != value
        ]
    return wrong


def _audit_ages(trained: pa.Table, name: str, max_staleness: int, lineage: Lineage, report: AuditReport) -> None:
    """Ages in versions. A resume goes on with the weights of its manifest, so what was sampled under those and older ones keeps its age."""
    spans = flat(trained, "versions")
    row = owners(trained, "versions")
    generation, number = (np.asarray(spans.field(field).to_numpy(zero_copy_only=False)) for field in ("generation", "number"))
    ages = np.asarray(trained["learner_number"].to_numpy())[row] - number
    learner = np.asarray(trained["learner_generation"].to_numpy())[row]
    began = [event["generation"] for event in lineage.events if event.kind in (EventKind.RUN_STARTED, EventKind.RESUMED)]
    foreign = (generation > learner) | ~np.isin(generation, began)
    for resume in lineage.resumes:
        foreign |= (generation < resume.generation) & (resume.generation <= learner) & (number > resume.step)
    report.max_age = max(report.max_age, int(ages.max(initial=0)))
    groups = trained["group_id"].to_pylist()
    for bad, words in (
        (ages > max_staleness, f"a trained token older than the {max_staleness} versions allowed"),
        (ages < 0, "a trained token newer than the learner"),
        (foreign, "a trained token of another generation, whose weights no resume kept"),
    ):
        report.violations += [f"{name}: group {group} has {words}" for group in sorted({groups[i] for i in row[bad]})]
    if untold := [groups[i] for i in np.flatnonzero(lengths(trained, "versions") == 0)]:
        report.violations.append(f"{name}: group {untold[0]} has a trained row without weight versions")


def _unacknowledged(trained: pa.Table, name: str, endings: dict[str, Event], acked: dict[WeightVersion, set[str]]) -> list[str]:
    spans = flat(trained, "versions")
    served = pa.table(
        {
            "group_id": trained["group_id"].combine_chunks().take(pa.array(owners(trained, "versions"))),
            "generation": spans.field("generation"),
            "number": spans.field("number"),
        }
    )
    wrong = []
    for row in _distinct(served, ("group_id", "generation", "number")):
        ending = endings.get(row["group_id"])
        version = WeightVersion(row["generation"], row["number"])
        if ending is not None and ending.kind is EventKind.TRAINED and ending["engine_id"] not in acked[version]:
            wrong.append(
                f"{name}: engine {ending['engine_id']} served version {version} to group {row['group_id']} without an ack"
            )
    return wrong


def _distinct(table: pa.Table, columns: Iterable[str]) -> list[dict[str, Any]]:
    names = list(columns)
    found: list[dict[str, Any]] = table.select(names).group_by(names, use_threads=False).aggregate([]).to_pylist()
    return found
