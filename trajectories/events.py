"""The diary of a run: one JSON object per line, appended and flushed as things happen."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from security.hiding import scrubbed
from trajectories.event_fields import wrong_field


class EventKind(StrEnum):
    """All that can happen to a run."""

    RUN_STARTED = "run_started"
    RESUMED = "resumed"
    SERVICES_READY = "services_ready"  # when each part of the start was, in Unix seconds
    ADMITTED = "admitted"
    TRAINED = "trained"
    DROPPED = "dropped"
    VOIDED = "voided"
    REQUEUED = "requeued"
    RECOVERED = "recovered"  # rolled out by an earlier process: finished at once
    DISCARDED = "discarded"  # rolled out by an earlier process: its rows may not be used
    PUBLISHED = "published"
    ACK = "ack"
    SCALED = "scaled"  # the autoscaler asked for another number of engines, or drained those on nodes that are about to go
    PHASE_ENTERED = "phase_entered"
    PHASE_LEFT = "phase_left"
    PROBE = "probe"
    CHECKPOINT = "checkpoint"
    ROLLED_BACK = "rolled_back"  # after a collapse: `resumed` follows
    PAUSED = "paused"  # ended on request before its time: a resume goes on
    STOPPED = "stopped"
    FAILED = "failed"


# What the audit relies on: a writer that leaves one of these out fails at once. More fields may always be added.
REQUIRED_FIELDS: Mapping[EventKind, frozenset[str]] = {
    kind: frozenset(fields.split())
    for kind, fields in {
        EventKind.RUN_STARTED: "run_id generation max_staleness",
        EventKind.RESUMED: "generation step",
        EventKind.SERVICES_READY: "ready",
        EventKind.ADMITTED: "group_id question_id phase",
        EventKind.TRAINED: "group_id engine_id step episodes",
        EventKind.DROPPED: "group_id reason",
        EventKind.VOIDED: "group_id reason",
        EventKind.REQUEUED: "group_id attempt reason",
        EventKind.RECOVERED: "group_id engine_id",
        EventKind.DISCARDED: "group_id reason",
        EventKind.PUBLISHED: "version step",
        EventKind.ACK: "engine_id version ok",
        EventKind.SCALED: "engines target reason",
        EventKind.PHASE_ENTERED: "phase step",
        EventKind.PHASE_LEFT: "phase step left_by reason",
        EventKind.PROBE: "phase step score n",
        EventKind.CHECKPOINT: "step",
        EventKind.ROLLED_BACK: "phase step to_step reason",
        EventKind.PAUSED: "step reason",
        EventKind.STOPPED: "step reason",
        EventKind.FAILED: "reason",
    }.items()
}


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened. `event["step"]` reads a field."""

    kind: EventKind
    time: float  # Unix seconds
    fields: dict[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.fields[name]


class EventFile(NamedTuple):
    """What a file of events holds; `truncated` where a crash cut its last line, which is then left out."""

    events: list[Event]
    truncated: bool


class EventLog:
    """Appends events to a file. Opening it cuts off a last line that a crash left unfinished.

    `position` is the number of events so far. Put it into the manifest in the same moment as the ledger's snapshot, and into
    the `resumed` event: then the audit knows exactly what a resume takes back. Without it, the `checkpoint` event counts.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, EventLog(Path(folder) / "events.jsonl") as log:
        ...     _ = log.append(EventKind.CHECKPOINT, step=3)
        ...     log.position, read_events(log.path).events[0]["step"]
        (1, 3)
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self.position = len(read_events(self.path).events)
            _cut_unfinished_line(self.path)
        else:
            self.position = 0
        self._file = self.path.open("a", encoding="utf-8")

    def append(self, kind: EventKind, **fields: Any) -> Event:
        """Writes one event and flushes it; a missing or unwritable field raises before anything is written."""
        if missing := REQUIRED_FIELDS[kind] - fields.keys():
            raise ValueError(f"event {kind}: missing {', '.join(sorted(missing))}")
        if "time" in fields:
            raise ValueError(f"event {kind}: the field name time is taken by the log's own clock")
        event = Event(kind, time.time(), scrubbed(fields))
        line = json.dumps({"kind": kind.value, "time": event.time, **event.fields}, allow_nan=False)
        if wrong := wrong_field(fields):  # what is written here must be read again
            raise ValueError(f"event {kind}: {wrong}")
        self._file.write(line + "\n")
        self._file.flush()
        self.position += 1
        return event

    def sync(self) -> None:
        """Forces what was written onto the disk; called before a manifest that refers to it."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def read_events(path: Path | str) -> EventFile:
    """All events of a file. An unfinished last line is tolerated and reported; damage anywhere else raises ValueError."""
    lines = Path(path).read_bytes().split(b"\n")
    truncated = lines.pop() != b""  # every finished line ends with a newline
    return EventFile([parse_event(line, f"{path}:{number}") for number, line in enumerate(lines, start=1)], truncated)


def parse_event(line: bytes, where: str) -> Event:
    """One line of the file; `where` names it in the error."""
    try:
        fields = json.loads(line)
        kind = EventKind(fields.pop("kind"))
        at = float(fields.pop("time"))
    except (ValueError, KeyError, AttributeError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{where}: not an event ({str(error)[:200]!r}); the file is damaged") from None
    if wrong := wrong_field({"score": at, **fields}):
        raise ValueError(f"{where}: event {kind}: {wrong}; the file is damaged")
    if missing := REQUIRED_FIELDS[kind] - fields.keys():
        raise ValueError(f"{where}: event {kind} misses {', '.join(sorted(missing))}")
    return Event(kind, at, fields)


def _cut_unfinished_line(path: Path) -> None:
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        os.truncate(path, end)
