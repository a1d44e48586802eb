"""What a run writes down: events as they happen, rows when groups end, metrics and status with every step."""

from __future__ import annotations

import asyncio
import math
import os
import socket
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from ray import ObjectRef

from actors.messages import GroupSummary
from actors.protocol import FinishReason
from medr3.observe.tracker import Tracker
from medr3.run.accounts import Accounts
from medr3.run.manifest import write_json
from medr3.run.recovery import Recovery, note_of
from security.hiding import scrub
from trajectories.events import EventKind, EventLog
from trajectories.groups import Outcome
from trajectories.ledger import Ledger
from trajectories.publication import Publication, WeightAck
from trajectories.recorder import Recorder
from trajectories.schema import WeightVersion
from trajectories.store import with_ending


@dataclass
class FinishedGroup:
    """A finished group as the driver holds it: `rows` travels on to the learner, `table` maps the same bytes for the store."""

    summary: GroupSummary
    source: str
    rows: ObjectRef[pa.Table]
    table: pa.Table


@dataclass
class Journal:
    """The run folder's writer. Only the driver holds one."""

    folder: Path
    events: EventLog
    tracker: Tracker
    store: Recorder
    accounts: Accounts = field(default_factory=Accounts)
    on_status: Callable[[dict[str, Any]], None] = lambda fields: None  # for a terminal that shows where the run is
    redact: Callable[[pa.Table], pa.Table] | None = None  # of rows, before they are stored; what is learned from stays as it is
    resumes_at: int = -1  # the step of the newest checkpoint that was ordered
    _unstored: list[pa.Table] = field(default_factory=list)
    _ended: list[str] = field(default_factory=list)
    _held: list[str] = field(default_factory=list)  # ended, and of use to a resume from that checkpoint: they stay in the spool
    _superseded: list[str] = field(default_factory=list)  # of these, those whose rows are in a step's file

    def published(self, publication: Publication) -> None:
        """New weights; the publish number is the step that made them."""
        version = publication.version
        state = {"state": publication.state} if publication.state else {}
        self.events.append(
            EventKind.PUBLISHED, version=str(version), step=version.number, checksum=publication.checksum, **state
        )

    def ack(self, ack: WeightAck) -> None:
        """An engine's answer. One that refused the file has no canary to tell of, and JSON has no NaN."""
        self.accounts.ack(ack)
        difference = ack.canary_difference if math.isfinite(ack.canary_difference) else None
        self.events.append(
            EventKind.ACK, engine_id=ack.engine_id, version=str(ack.version), ok=ack.ok, checksum=ack.checksum,
            canary_difference=difference, reason=ack.reason,
        )  # fmt: skip

    def endings(self, ledger: Ledger, finished: dict[str, FinishedGroup], learner: WeightVersion) -> None:
        """Writes down every group that ended since the last call, and keeps its rows for the step's file."""
        for ending in ledger.drain_endings():
            group = finished.pop(ending.group_id, None)
            (self._ended if group is None or group.summary.newest.number > self.resumes_at else self._held).append(
                ending.group_id
            )
            if ending.outcome is Outcome.TRAINED:
                assert group is not None, "a trained group has rows"
                self.events.append(
                    EventKind.TRAINED, group_id=ending.group_id, engine_id=group.summary.engine_id, step=ending.step,
                    episodes=group.table.num_rows, age=ending.age,
                    dropped_samples=[f"{sample.episode_id}: {sample.reason}" for sample in group.summary.dropped_samples],
                )  # fmt: skip
            else:
                kind = EventKind.DROPPED if ending.outcome is Outcome.DROPPED else EventKind.VOIDED
                self.events.append(kind, group_id=ending.group_id, reason=ending.reason)
            if group is not None:
                self._unstored.append(
                    with_ending(group.table, ending.outcome.value, scrub(ending.reason), ending.step, learner)
                )

    async def spooled(self, group: FinishedGroup) -> None:
        """Returns once a crash of this process does not lose the group."""
        if self.redact is not None:
            group.table = await asyncio.to_thread(self.redact, group.table)
        await asyncio.wrap_future(self.store.finished(group.table, note_of(group.summary)))

    def discarded(self, recovery: Recovery) -> None:
        """Groups of an earlier process whose rows are not used, each by name."""
        for group_id, reason in recovery.drain_discarded():
            self.events.append(EventKind.DISCARDED, group_id=group_id, reason=reason)

    def store_step(self, step: int) -> None:
        """One file per step, with all groups that ended since the last one; written while the loop goes on."""
        self.store.step(step, self._unstored, self._ended)
        self._superseded += self._held
        self._unstored, self._ended, self._held = [], [], []

    def ordered(self, step: int) -> list[str]:
        """A checkpoint of this state is ordered; returns the groups that nobody needs once a manifest names it."""
        self.resumes_at = step
        superseded, self._superseded = self._superseded, []
        return superseded

    def store_rest(self, step: int) -> None:
        """At the end of a run: groups that ended after the last step, in a file of their own."""
        if self._ended or self._unstored:
            self.store_step(step + 1)
        self.store.sync()
        self.store.ended(self._superseded)  # nobody resumes a run that has ended
        self._superseded = []

    def sync(self) -> None:
        """Forces what was written onto the disk; called before a manifest that refers to it."""
        self.store.sync()
        self.events.sync()

    def say(self, line: str) -> None:
        """A line for the person at the terminal."""
        print(scrub(line), flush=True)

    def warn(self, step: int, learner: dict[str, float]) -> None:
        """What a person should know of a step that was made all the same."""
        if learner.get("mismatch_warned"):
            self.say(
                f"warning: step {step}: engine and learner differ by {learner['mismatch_mean']:.4g} per token, above"
                " learner.mismatch_warn; above learner.max_mismatch the run ends"
            )
        if learner["skipped_updates"]:
            self.say(f"warning: step {step}: {learner['skipped_updates']:.0f} updates left out, their gradient was not finite")
        if learner["groups_not_finite"]:
            self.say(f"warning: step {step}: {learner['groups_not_finite']:.0f} groups left out, a reward was not finite")

    def status(self, **fields: Any) -> None:
        """What `medr3 status` shows."""
        known = {"pid": os.getpid(), "host": socket.gethostname(), "time": time.time(), "run": self.folder.name}
        write_json(self.folder / "status.json", known | fields)
        self.on_status(fields)


class Seconds(NamedTuple):
    """Where the wall time of a step went: the wait for a batch, that part of it in which only slow groups were missing, learning."""

    waited: float
    waited_for_slow: float
    learned: float
    whole: float


def step_metrics(groups: list[FinishedGroup], phase: str, learner: dict[str, float], seconds: Seconds) -> dict[str, float]:
    """All that a learner step is told of: what its groups were like, what the learner measured, and how long it took."""
    tokens = sum(group.summary.model_tokens for group in groups)
    episodes = sum(len(group.summary.rewards) for group in groups)
    return {
        **group_metrics(groups, phase),
        **{f"learner/{name}": value for name, value in learner.items()},
        "rollout/tokens_per_s": tokens / seconds.whole,
        "rollout/episodes_per_s": episodes / seconds.whole,
        "time/rollout": seconds.waited,
        "time/rollout_for_slow": seconds.waited_for_slow,
        "time/learn": seconds.learned,
        "time/sync": seconds.whole - seconds.waited - seconds.learned,
        "time/step": seconds.whole,
    }


def group_metrics(groups: list[FinishedGroup], phase: str) -> dict[str, float]:
    """The step's rollout and reward metrics, by component, and by phase, source and component."""
    episodes = sum(len(group.summary.rewards) for group in groups)
    rewards = [reward for group in groups for reward in group.summary.rewards]
    spreads = [_deviation(group.summary.rewards) for group in groups]
    metrics = {
        "reward/mean": sum(rewards) / episodes,
        "reward/std": sum(spreads) / len(groups),
        "reward/correct": sum(sum(group.summary.correct) for group in groups) / episodes,
        "rollout/response_tokens": sum(group.summary.model_tokens for group in groups) / episodes,
        "rollout/document_tokens": sum(group.summary.document_tokens for group in groups) / episodes,
        "rollout/searches": sum(group.summary.searches for group in groups) / episodes,
        "rollout/generate_s": sum(group.summary.generate_s for group in groups) / episodes,
        "rollout/search_s": sum(group.summary.search_s for group in groups) / episodes,
    }
    sums: dict[str, list[float]] = {}
    for group in groups:
        for name, value in group.summary.components.items():
            sums.setdefault(f"reward/{name}", []).append(value)
            sums.setdefault(f"reward/{phase}/{group.source}/{name}", []).append(value)
        sums.setdefault(f"reward/{phase}/{group.source}/mean", []).append(
            sum(group.summary.rewards) / len(group.summary.rewards)
        )
    metrics |= {name: sum(values) / len(values) for name, values in sums.items()}
    causes = Counter(sample.cause for group in groups for sample in group.summary.dropped_samples)
    metrics |= {"reward/dropped_samples": causes.total()}
    metrics |= {f"reward/dropped_samples/{cause}": count for cause, count in sorted(causes.items())}
    finishes = Counter[str]()
    levels = Counter[int]()
    for group in groups:
        finishes.update(group.summary.finishes)
        levels.update(group.summary.evidence_levels)
    # Those that did not happen are 0, not absent: a collapse shows in what disappears.
    metrics |= {f"finish/{reason}": finishes[reason] / episodes for reason in FinishReason}
    cited = sum(levels.values())
    return metrics | {f"evidence/{level}": count / cited for level, count in sorted(levels.items())}


def _deviation(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return float((sum((value - mean) ** 2 for value in values) / len(values)) ** 0.5)
