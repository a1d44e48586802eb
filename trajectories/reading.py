"""A run's episodes for people and other programs: what the store has, then what only the spool has, each with its outcome."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from trajectories.audit import EVENTS_FILE, TRAJECTORIES_FOLDER
from trajectories.events import Event, EventKind, read_events
from trajectories.groups import Outcome
from trajectories.lineage import surviving
from trajectories.schema import STORED_SCHEMA, WeightVersion
from trajectories.spool import SpooledGroup, read_spool
from trajectories.store import StoredStep, stored_steps, with_ending

OPEN = "open"  # finished, and neither trained nor dropped so far
ROLLED_BACK = "rolled_back"  # a resume went back behind it
UNKNOWN = -1  # step and learner of a group that was not trained

_ENDS = {EventKind.TRAINED: Outcome.TRAINED, EventKind.DROPPED: Outcome.DROPPED, EventKind.VOIDED: Outcome.VOIDED}


class Recorded(NamedTuple):
    """Rows that were stored with one step; those of the spool have none yet."""

    step: int
    rows: pa.Table


class Record:
    """What is on the disk of one run. It may be going on: every group appears once."""

    def __init__(self, run_folder: Path | str) -> None:
        """Raises OSError or ValueError where the folder's events cannot be read."""
        self._folder = Path(run_folder) / TRAJECTORIES_FOLDER
        self._lineage = surviving(read_events(Path(run_folder) / EVENTS_FILE).events)
        self._endings = {event["group_id"]: event for event in self._lineage.events if event.kind in _ENDS}
        self._generation = max((resume.generation for resume in self._lineage.resumes), default=0)

    def read(self, columns: Sequence[str] = STORED_SCHEMA.names, *, newest_first: bool = False) -> Iterator[Recorded]:
        """These columns and always `outcome`; a step or a group at a time, so that a long run fits into memory."""
        names = list(dict.fromkeys([*columns, "outcome"]))
        stored, spooled = self._now()
        of_store = (
            Recorded(step.step, self._with_rollback(step, step.read(names)))
            for step in (reversed(stored) if newest_first else stored)
        )
        of_spool = (Recorded(UNKNOWN, self._with_event(group).select(names)) for group in spooled)
        yield from chain(of_spool, of_store) if newest_first else chain(of_store, of_spool)

    def find(self, name: str) -> dict[str, Any] | None:
        """The newest row of an episode; `_index` says how it may be named."""
        stored, spooled = self._now()
        for group in spooled:
            if (index := _index(group.rows, name)) is not None:
                return _row(self._with_event(group), index)
        for step in reversed(stored):
            if (index := _index(step.read(["group_id", "episode_id"]), name)) is not None:
                return _row(self._with_rollback(step, step.read()), index)
        return None

    def _now(self) -> tuple[list[StoredStep], list[SpooledGroup]]:
        """Store and spool at one moment: no group moved from one to the other while they were looked at."""
        before: list[tuple[int, int]] | None = None
        while True:
            spooled = read_spool(self._folder).groups
            stored = stored_steps(self._folder)
            if before == (steps := [(step.step, step.generation) for step in stored]):
                return stored, spooled
            before = steps

    def _with_rollback(self, step: StoredStep, rows: pa.Table) -> pa.Table:
        if self._lineage.survives(step.generation, step.step):
            return rows
        return _set(rows, "outcome", ROLLED_BACK)

    def _with_event(self, group: SpooledGroup) -> pa.Table:
        """A crash may have come between a group's ending and its step's file: then the events tell how it ended."""
        nobody = WeightVersion(UNKNOWN, UNKNOWN)
        if group.generation < self._generation:
            return with_ending(group.rows, ROLLED_BACK, "", UNKNOWN, nobody)
        event = self._endings.get(group.group_id)
        if event is None:
            return with_ending(group.rows, OPEN, "", UNKNOWN, nobody)
        return with_ending(group.rows, _ENDS[event.kind].value, _reason(event), event.fields.get("step", UNKNOWN), nobody)


def _index(rows: pa.Table, name: str) -> int | None:
    """The place of an episode, named by its id, as group/id, as group/number (from 0), or as a group, whose first one it is."""
    group, _, episode = name.rpartition("/")
    ids = list(zip(rows["group_id"].to_pylist(), rows["episode_id"].to_pylist(), strict=True))
    for i, (group_id, own) in enumerate(ids):
        if own == episode and group in ("", group_id):
            return i
    of_group = [i for i, (group_id, _) in enumerate(ids) if group_id == (group or episode)]
    number = 0 if not group else int(episode) if episode.isdigit() else len(ids)
    return of_group[number] if number < len(of_group) else None


def _row(rows: pa.Table, index: int) -> dict[str, Any]:
    row: dict[str, Any] = rows.slice(index, 1).to_pylist()[0]
    return row


def _reason(event: Event) -> str:
    return str(event.fields.get("reason", ""))


def _set(rows: pa.Table, column: str, value: str) -> pa.Table:
    return rows.set_column(rows.schema.get_field_index(column), column, pa.array([value] * rows.num_rows, pa.string()))
