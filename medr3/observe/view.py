"""What the page shows of a run, as one JSON document; the script in the page draws it and invents nothing."""

from __future__ import annotations

import time
from typing import Any

from medr3.observe.curves import charts_of, rounded
from medr3.observe.record import ENDINGS, RunRecord, wilson
from trajectories.events import Event, EventKind

LANES = 64  # engines on the timeline, the newest first: more lanes would be thinner than a finger
REASONS = 30  # why groups were not trained: a broken service gives each its own
LINES = 200  # of the run's diary, the newest: an elastic pool writes hundreds


def view_of(record: RunRecord, *, alive: bool | None = None) -> dict[str, Any]:
    """`alive` is whether the run's process still lives, where this machine can tell."""
    charts, columns = charts_of(record)
    return {
        "name": record.name,
        "written": time.time(),
        "state": _state(record, alive),
        "tiles": _tiles(record),
        "last": max(
            record.last_step,
            *(phase.end for phase in record.phases),
            *(lane[-1].last for lane in record.engines.values()),
            0,
        ),
        "phases": [
            {"name": phase.name, "start": phase.start, "end": phase.end, "left_by": phase.left_by, "reason": phase.reason}
            for phase in record.phases
        ],
        "probes": [_probe(probe.phase, probe.step, probe.score, probe.n) for probe in record.probes],
        "charts": charts,
        "columns": columns,
        "accuracy": _accuracy(record),
        "endings": _endings(record),
        "stages": sorted(record.summary.get("time_by_stage", {}).items(), key=lambda item: -item[1]),
        "engines": _engines(record),
        "diary": [_line(step, event) for step, event in record.notable[-LINES:]],
    }


def _state(record: RunRecord, alive: bool | None) -> dict[str, str]:
    """The sentence at the top: what became of the run, or what it is doing."""
    kind = record.last_event.kind if record.last_event else None
    reason = str(record.last_event.fields.get("reason", "")) if record.last_event else ""
    step, said = record.last_step, str(record.status.get("state", ""))
    if said == "preparing" and alive is not False and record.status.get("time", 0.0) >= _last_heard(record):
        then = f"it goes on from step {step}" if step else "the first step follows"
        return _said("preparing", "live", f"index, engines and, for the demo, the cold start; {then}")
    if kind is EventKind.FAILED:
        return _said("failed", "wrong", f"at step {step}: {reason}")
    if kind is EventKind.STOPPED:
        return _said("ended", "right", f"after {step} steps: {reason}")
    if kind is EventKind.PAUSED or said == "interrupted":
        return _said("stopped", "", f"after step {step}; the same command goes on from its last checkpoint")
    if alive is False:
        return _said("gone", "wrong", f"its process ended at step {step} without a word; the same command goes on")
    phase = record.phases[-1].name if record.phases else ""
    return _said("going on", "live", f"at step {step}" + (f", in phase {phase}" if phase else ""))


def _last_heard(record: RunRecord) -> float:
    return record.last_event.time if record.last_event else 0.0


def _said(word: str, tone: str, text: str) -> dict[str, str]:
    return {"word": word, "tone": tone, "text": text}


def _tiles(record: RunRecord) -> list[list[str]]:
    """The figures that a reader looks for first; while a run goes on, those of its last steps stand for them."""
    summary, last = record.summary, record.metrics[-1] if record.metrics else {}
    tiles: list[list[str]] = []
    heldout = list(summary.get("heldout", {}).values())
    if heldout:
        tiles.append(["held-out accuracy, first to last", f"{heldout[0]:.3f} → {heldout[-1]:.3f}"])
    elif record.probes:
        newest = record.probes[-1]
        tiles.append([f"held-out, {newest.phase}, step {newest.step}", f"{newest.score:.3f}"])
    if "reward/mean" in last and not heldout:
        tiles.append(["reward of the last step", f"{last['reward/mean'] or 0.0:.3f}"])
    if "wall_s" in summary:
        tiles.append(["wall time", _duration(summary["wall_s"])])
    elif record.started_at is not None and record.last_event is not None:
        seen = max(record.last_event.time, last.get("time", 0.0))
        tiles.append(["since its start", _duration(seen - record.started_at)])
    speed = summary.get("tokens_per_s", last.get("rollout/tokens_per_s"))
    if speed is not None:
        tiles.append(["model tokens/s", f"{speed:,.0f}"])
    age = summary.get("max_age", last.get("learner/age_max"))
    if age is not None:
        tiles.append(["oldest trained token", f"{age:.0f} version{'' if age == 1 else 's'}"])
    states: dict[str, str] = record.status.get("engines", {})
    if states:
        healthy = sum(state == "healthy" for state in states.values())
        tiles.append(["healthy engines", f"{healthy} of {len(states)}"])
    return tiles


def _duration(seconds: float) -> str:
    """
    Example:
        >>> _duration(412), _duration(9000), _duration(200_000)
        ('6.9 min', '2.5 h', '2.3 days')
    """
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def _probe(phase: str, step: int, score: float, n: int) -> dict[str, Any]:
    low, high = wilson(score, n)
    return {"phase": phase, "step": step, "score": rounded(score), "low": rounded(low), "high": rounded(high), "n": n}


def _accuracy(record: RunRecord) -> dict[str, Any]:
    """Rows: when it was measured. Columns: whose questions."""
    table: dict[str, dict[str, dict[str, Any]]] = record.summary.get("heldout_by_phase", {})
    overall: dict[str, float] = record.summary.get("heldout", {})
    columns = list(dict.fromkeys(phase for row in table.values() for phase in row))
    return {
        "columns": columns,
        "rows": [
            {"stage": stage.replace("_", " "), "all": overall.get(stage), "cells": [_cell(row.get(name)) for name in columns]}
            for stage, row in table.items()
        ],
    }


def _cell(cell: dict[str, Any] | None) -> dict[str, Any] | None:
    if not cell:
        return None
    accuracy, n = cell["accuracy"], cell.get("n", 0)
    low, high = wilson(accuracy, n)
    return {"accuracy": accuracy, "low": low, "high": high, "n": n, "without": cell.get("without_retrieval")}


def _endings(record: RunRecord) -> dict[str, Any]:
    """How every admitted group ended, and why those that were not trained were not."""
    counted: dict[str, int] = dict(record.summary.get("groups", {}))
    for kind in ENDINGS:
        counted.setdefault(kind.value, sum(count for (ended, _), count in record.endings.items() if ended is kind))
    admitted = counted.get("admitted", record.admitted)
    why = [
        [kind.value, reason, count]
        for (kind, reason), count in record.endings.most_common()
        if reason and kind is not EventKind.TRAINED
    ]
    return {
        "admitted": admitted,
        "counts": {kind.value: counted[kind.value] for kind in ENDINGS},
        "open": max(admitted - sum(counted[kind.value] for kind in ENDINGS), 0),
        "why": [*why, *(["tried again", reason, count] for reason, count in record.requeued.most_common())][:REASONS],
    }


def _engines(record: RunRecord) -> dict[str, Any]:
    """Lanes by the last step that an engine served, so that those of a long run's end are among them."""
    order = sorted(record.engines, key=lambda engine: -record.engines[engine][-1].last)
    shown = sorted(order[:LANES], key=lambda engine: (record.engines[engine][0].first, engine))
    states: dict[str, str] = record.status.get("engines", {})
    return {
        "lanes": [
            {
                "engine": engine,
                "state": states.get(engine, ""),
                "served": [[part.first, part.last, part.ok] for part in record.engines[engine]],
            }
            for engine in shown
        ],
        "left_out": len(order) - len(shown),
    }


def _line(step: int, event: Event) -> dict[str, Any]:
    return {"time": event.time, "step": step, "kind": event.kind.value.replace("_", " "), "text": _told(event)}


def _told(event: Event) -> str:
    fields = event.fields
    match event.kind:
        case EventKind.RUN_STARTED:
            return f"seed {fields['seed']}" if "seed" in fields else ""
        case EventKind.RESUMED:
            return f"from step {fields['step']}, generation {fields['generation']}"
        case EventKind.PHASE_ENTERED:
            return str(fields["phase"])
        case EventKind.PHASE_LEFT:
            return f"{fields['phase']} by {fields['left_by']}: {fields['reason']}"
        case EventKind.ROLLED_BACK:
            return f"{fields['phase']} to step {fields['to_step']}: {fields['reason']}"
        case EventKind.SCALED:
            return f"{fields['engines']} → {fields['target']} engines: {fields['reason']}"
        case _:
            return str(fields.get("reason", ""))
