"""Groups that an earlier process rolled out and nobody trained: taken back where a resume may still use them, named where it may not.

::

    spool, all generations ▶ not ended in the surviving lineage ▶ sampled under weights that survive ▶ young enough ─▶ waits here
                                        └ was ended: nothing to do      └ else: discarded, with its name and the reason

    feed: a group needs an engine ─▶ are its rows here, for the same question in the same phase? ─▶ finished at once

A resume leases open groups again and admits those behind its manifest anew, by the same names and, as its draws depend on nothing but
the manifest, for the same questions. So a name finds its rows whether or not the manifest knew the group.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import pyarrow as pa

from actors.messages import DroppedSample, GroupSummary
from trajectories.events import EventKind
from trajectories.groups import State
from trajectories.lineage import Lineage
from trajectories.schema import WeightVersion
from trajectories.spool import SpooledGroup

_ENDS = (EventKind.TRAINED, EventKind.DROPPED, EventKind.VOIDED)


class Found(NamedTuple):
    """A finished group of an earlier process. Its version is counted in the generation that is on: the weights are the same."""

    summary: GroupSummary
    table: pa.Table
    observed: bool  # the manifest's sampler has its result already


@dataclass
class Recovery:
    """What a resume found; empty in a run that begins."""

    groups: dict[str, Found] = field(default_factory=dict)
    discarded: dict[str, str] = field(default_factory=dict)  # group → reason, not yet told

    def take(self, group_id: str, question_id: str, phase: str) -> Found | None:
        """The rows of this group, once, if they answer this question in this phase."""
        found = self.groups.pop(group_id, None)
        if found is None:
            return None
        row = found.table.slice(0, 1).select(["question_id", "phase"]).to_pylist()[0]
        if (row["question_id"], row["phase"]) != (question_id, phase):
            self.discarded[group_id] = f"answers {row['question_id']} in phase {row['phase']}, and {question_id} is asked now"
            return None
        return found

    def give_up(self) -> None:
        """Weights moved on: what nobody asked for so far will not be asked for any more."""
        self.discarded |= dict.fromkeys(self.groups, "was not admitted again")
        self.groups = {}

    def drain_discarded(self) -> Iterator[tuple[str, str]]:
        """Groups whose rows are not used, and why; each is told once."""
        told, self.discarded = self.discarded, {}
        yield from told.items()


def recover(
    spooled: Iterable[SpooledGroup], lineage: Lineage, ledger: dict[str, Any], step: int, generation: int, max_staleness: int
) -> Recovery:
    """What a resume at `step`, whose event ends `lineage`, may use; `ledger` is the manifest's."""
    ended = {event["group_id"] for event in lineage.events if event.kind in _ENDS}
    observed = {each["group_id"] for each in ledger["open"] if each["state"] in (State.FINISHED, State.TAKEN)}
    recovery = Recovery()
    for group in spooled:  # a later generation comes later, and its attempt takes the place of an earlier one
        if group.group_id in ended:
            continue
        summary = _read_summary(group.note)
        reason = "its note cannot be read" if summary is None else _unusable(summary, lineage, step, max_staleness)
        if summary is None or reason:
            if group.group_id not in recovery.groups:
                recovery.discarded[group.group_id] = reason
            continue
        now = replace(
            summary,
            oldest=WeightVersion(generation, summary.oldest.number),
            newest=WeightVersion(generation, summary.newest.number),
        )
        recovery.groups[group.group_id] = Found(now, group.rows, group.group_id in observed)
        recovery.discarded.pop(group.group_id, None)
    return recovery


def note_of(summary: GroupSummary) -> bytes:
    """What the spool keeps beside a group's rows."""
    return json.dumps(asdict(summary)).encode()


def _unusable(summary: GroupSummary, lineage: Lineage, step: int, max_staleness: int) -> str:
    """Why a group cannot be trained after a resume at this step; empty where it can."""
    for version in (summary.oldest, summary.newest):
        if not lineage.survives(version.generation, version.number):
            return f"sampled under version {version}, which the resume took back"
    age = step - summary.oldest.number
    return f"{age} versions old, and {max_staleness} are allowed" if age > max_staleness else ""


def _read_summary(note: bytes) -> GroupSummary | None:
    """The note of an earlier process, or of an earlier program: whatever does not fit is no summary."""
    try:
        raw = json.loads(note)
        versions = {name: WeightVersion(*map(int, raw[name])) for name in ("oldest", "newest")}
        dropped = [DroppedSample(*each) for each in raw["dropped_samples"]]
        return GroupSummary(**raw | versions | {"dropped_samples": dropped})
    except (ValueError, TypeError, KeyError):
        return None
