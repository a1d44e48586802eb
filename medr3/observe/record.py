"""What a run folder says about its run, read for the page. Works on a run that is still going on, or that died."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medr3.errors import UserError
from medr3.observe.metrics_file import read_metrics
from medr3.run_shapes import Status, Summary, wrong_in
from trajectories.events import Event, EventKind, read_events
from trajectories.lineage import surviving
from trajectories.schema import WeightVersion

METRICS_FILE, EVENTS_FILE, SUMMARY_FILE, STATUS_FILE = "metrics.jsonl", "events.jsonl", "summary.json", "status.json"
ENDINGS = (EventKind.TRAINED, EventKind.DROPPED, EventKind.VOIDED)
# What a person asks about the next morning; groups, weights and probes are in the figures.
NOTABLE = (
    EventKind.RUN_STARTED, EventKind.RESUMED, EventKind.ROLLED_BACK, EventKind.SCALED, EventKind.PAUSED, EventKind.STOPPED,
    EventKind.FAILED, EventKind.PHASE_ENTERED, EventKind.PHASE_LEFT,
)  # fmt: skip
Z_95 = 1.959964  # two-sided 95 % of the normal distribution


@dataclass(frozen=True, slots=True)
class Phase:
    """One stay in a phase: its first and last step, and why it was left ("" while it goes on)."""

    name: str
    start: int
    end: int
    left_by: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Probe:
    """One held-out probe with its 95 % interval."""

    phase: str
    step: int
    score: float
    n: int

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.score, self.n)


@dataclass(frozen=True, slots=True)
class Served:
    """Steps after which an engine had the new weights, from `first` to `last`; or one at which it refused them."""

    first: int
    last: int
    ok: bool


@dataclass(frozen=True, slots=True)
class RunRecord:
    """Everything that the page shows, except episodes."""

    name: str
    metrics: list[dict[str, Any]]
    phases: list[Phase]
    probes: list[Probe]
    endings: Counter[tuple[EventKind, str]]  # (event kind, reason) → groups
    last_event: Event | None
    summary: dict[str, Any]
    admitted: int = 0
    requeued: Counter[str] = field(default_factory=Counter)  # reason → times
    engines: dict[str, list[Served]] = field(default_factory=dict)
    notable: list[tuple[int, Event]] = field(default_factory=list)  # with the step that the run had reached
    started_at: float | None = None  # Unix seconds, of the first event
    status: dict[str, Any] = field(default_factory=dict)

    @property
    def last_step(self) -> int:
        return int(self.metrics[-1]["step"]) if self.metrics else 0

    def curve(self, name: str) -> list[tuple[float, float]]:
        """The (step, value) points of one metric; absent and non-finite values are left out."""
        return [(row["step"], row[name]) for row in self.metrics if row.get(name) is not None]


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of n trials: it stays within [0, 1] and is honest near both ends.

    Example:
        >>> low, high = wilson(0.9, 200)
        >>> round(low, 3), round(high, 3)
        (0.851, 0.934)
    """
    if n <= 0:
        return 0.0, 1.0
    share = min(max(share, 0.0), 1.0)
    centre = (share + Z_95**2 / (2 * n)) / (1 + Z_95**2 / n)
    half = Z_95 * math.sqrt(share * (1 - share) / n + Z_95**2 / (4 * n * n)) / (1 + Z_95**2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def load_record(run_folder: Path) -> RunRecord:
    """Reads the run's files; a folder without metrics and events is no run."""
    check_run_folder(run_folder)
    try:
        metrics = read_metrics(run_folder / METRICS_FILE)
        events_path = run_folder / EVENTS_FILE
        written = read_events(events_path).events if events_path.exists() else []
    except ValueError as error:
        raise UserError(str(error)) from None
    return record_of(run_folder, metrics, written)


def check_run_folder(run_folder: Path) -> None:
    if not any((run_folder / name).exists() for name in (METRICS_FILE, EVENTS_FILE, STATUS_FILE)):
        raise UserError(
            f"{run_folder}: no metrics.jsonl and no events.jsonl, so this is no run folder: name one, such as runs/demo"
        )


def record_of(run_folder: Path, metrics: list[dict[str, Any]], written: Sequence[Event]) -> RunRecord:
    """What lines that were read before amount to, with the small files as they are now."""
    events = surviving(written).events
    return RunRecord(
        name=run_folder.resolve().name,
        metrics=metrics,
        phases=_phases(events, metrics),
        probes=_probes(events),
        endings=Counter((event.kind, str(event.fields.get("reason", ""))) for event in events if event.kind in ENDINGS),
        last_event=written[-1] if written else None,
        summary=_json(run_folder / SUMMARY_FILE, Summary),
        admitted=sum(event.kind is EventKind.ADMITTED for event in events),
        requeued=Counter(str(event["reason"]) for event in events if event.kind is EventKind.REQUEUED),
        engines=_engines(written),
        notable=_notable(written),
        started_at=written[0].time if written else None,
        status=_json(run_folder / STATUS_FILE, Status),
    )


def _json(path: Path, shape: type[Status | Summary]) -> dict[str, Any]:
    """An absent file is empty, and so is one that is damaged, or being replaced on a file system that does this in two steps."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) and not wrong_in(found, shape) else {}


def _probes(events: list[Event]) -> list[Probe]:
    probes = [
        Probe(event["phase"], event["step"], event["score"], event["n"]) for event in events if event.kind is EventKind.PROBE
    ]
    return sorted(probes, key=lambda probe: probe.step)


def _phases(events: list[Event], metrics: list[dict[str, Any]]) -> list[Phase]:
    """From the controller's events; the phase that has not been left lasts until now."""
    last_step = max([row["step"] for row in metrics] + [event.fields.get("step", 0) for event in events], default=0)
    phases: list[Phase] = []
    for event in events:
        if event.kind is EventKind.PHASE_ENTERED and not (
            phases and phases[-1].name == event["phase"] and not phases[-1].left_by
        ):
            phases.append(Phase(event["phase"], event["step"], last_step))
        elif event.kind is EventKind.PHASE_LEFT and phases and phases[-1].name == event["phase"]:
            phases[-1] = Phase(event["phase"], phases[-1].start, event["step"], str(event["left_by"]), str(event["reason"]))
    return phases


def _engines(events: Iterable[Event]) -> dict[str, list[Served]]:
    """Per engine the stretches of steps for which it acknowledged the weights, in order; steps without an answer are gaps."""
    found: dict[str, list[Served]] = {}
    for event in events:
        if event.kind is not EventKind.ACK:
            continue
        step, ok = WeightVersion.parse(event["version"]).number, bool(event["ok"])
        lane = found.setdefault(event["engine_id"], [])
        if lane and lane[-1].ok and ok and lane[-1].last <= step <= lane[-1].last + 1:
            lane[-1] = Served(lane[-1].first, step, ok)
        else:
            lane.append(Served(step, step, ok))
    return found


def _notable(events: Iterable[Event]) -> list[tuple[int, Event]]:
    step, found = 0, []
    for event in events:
        if event.kind in (EventKind.TRAINED, EventKind.PUBLISHED, EventKind.RESUMED):
            step = int(event["step"])
        elif event.kind is EventKind.ROLLED_BACK:
            step = int(event["to_step"])
        if event.kind in NOTABLE:
            found.append((int(event.fields.get("step", step)), event))
    return found
