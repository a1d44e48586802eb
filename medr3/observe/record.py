"""What a run folder says about its run, read for the report. Works on a run that is still going on, or that died."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medr3.errors import UserError
from medr3.observe.metrics_file import read_metrics
from trajectories.events import Event, EventKind, read_events
from trajectories.lineage import surviving

ENDINGS = (EventKind.TRAINED, EventKind.DROPPED, EventKind.VOIDED)
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
class RunRecord:
    """Everything that the report shows, except episodes."""

    name: str
    metrics: list[dict[str, Any]]
    phases: list[Phase]
    probes: list[Probe]
    endings: Counter[tuple[EventKind, str]]  # (event kind, reason) → groups
    last_event: Event | None
    summary: dict[str, Any]

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
    centre = (share + Z_95**2 / (2 * n)) / (1 + Z_95**2 / n)
    half = Z_95 * math.sqrt(share * (1 - share) / n + Z_95**2 / (4 * n * n)) / (1 + Z_95**2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def load_record(run_folder: Path) -> RunRecord:
    """Reads the run's files; a folder without metrics and events is no run."""
    metrics_path, events_path = run_folder / "metrics.jsonl", run_folder / "events.jsonl"
    if not metrics_path.exists() and not events_path.exists():
        raise UserError(
            f"{run_folder}: no metrics.jsonl and no events.jsonl, so this is no run folder: name one, such as runs/demo"
        )
    try:
        metrics = read_metrics(metrics_path)
        written = read_events(events_path).events if events_path.exists() else []
    except ValueError as error:
        raise UserError(str(error)) from None
    events = surviving(written).events
    summary_path = run_folder / "summary.json"
    summary = json.loads(summary_path.read_text(encoding="utf-8")) if summary_path.exists() else {}
    return RunRecord(
        name=run_folder.resolve().name,
        metrics=metrics,
        phases=_phases(events, metrics),
        probes=_probes(events),
        endings=Counter((event.kind, str(event.fields.get("reason", ""))) for event in events if event.kind in ENDINGS),
        last_event=written[-1] if written else None,
        summary=summary,
    )


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
