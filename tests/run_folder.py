"""Small run folders that keep every promise of the audit, made by the real writers, to be broken one promise at a time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from trajectories.audit import EVENTS_FILE, TRAJECTORIES_FOLDER
from trajectories.events import EventKind, EventLog
from trajectories.schema import Episode, Segment, VersionSpan, WeightVersion, to_table
from trajectories.store import TrajectoryStore, with_ending

EPISODES = 2


def episode(group_id: str, index: int, version: WeightVersion) -> Episode:
    """Two prompt tokens, two of the model, two of a document, two of the model."""
    return Episode(
        "run", group_id, f"{group_id}-{index}", f"q-{group_id}", 0, "joint", "world", "text",
        token_ids=list(range(8)), loss_mask=[False, False, True, True, False, False, True, True],
        logprobs=[0.0, 0.0, -0.5, -0.5, 0.0, 0.0, -0.5, -0.5],
        segments=[Segment("prompt", 0, 2, -1), Segment("model", 2, 4, 0), Segment("document", 4, 6, 0), Segment("model", 6, 8, 1)],
        versions=[VersionSpan(*version, 2, 4), VersionSpan(*version, 6, 8)], searches=[],
    )  # fmt: skip


class RunFolder:
    """Writes a run step by step. Group ids are `g<n>`; the learner is at version (generation, steps so far)."""

    def __init__(self, path: Path, max_staleness: int = 1) -> None:
        self.path = path
        self.log = EventLog(path / EVENTS_FILE)
        self.store = TrajectoryStore(path / TRAJECTORIES_FOLDER)
        self.version = WeightVersion(1, 0)
        self.step = self.made = 0
        self.log.append(EventKind.RUN_STARTED, run_id="run", generation=1, max_staleness=max_staleness)
        self.publish()

    def publish(self, engine_id: str = "e0", ok: bool = True) -> None:
        self.log.append(EventKind.PUBLISHED, version=str(self.version), step=self.step)
        self.log.append(EventKind.ACK, engine_id=engine_id, version=str(self.version), ok=ok)

    def admit(self) -> str:
        group_id = f"g{self.made}"
        self.made += 1
        self.log.append(EventKind.ADMITTED, group_id=group_id, question_id=f"q-{group_id}", phase="joint")
        return group_id

    def train(
        self, age: int = 0, groups: int = 2, publish: bool = True, row: dict[str, Any] | None = None, **told: Any
    ) -> list[str]:
        """One step on new groups; `row` changes their rows, `told` what their `trained` events say."""
        self.step += 1
        group_ids = [self.admit() for _ in range(groups)]
        tables = []
        for group_id in group_ids:
            version = WeightVersion(self.version.generation, self.version.number - age)
            rows = [replace(episode(group_id, index, version), **(row or {})) for index in range(EPISODES)]
            tables.append(with_ending(to_table(rows), "trained", "", self.step, self.version))
            fields = {"group_id": group_id, "engine_id": "e0", "step": self.step, "episodes": EPISODES} | told
            self.log.append(EventKind.TRAINED, **fields)
        self.store.write(self.step, self.version.generation, tables)
        self.version = WeightVersion(self.version.generation, self.version.number + 1)
        if publish:
            self.publish()
        return group_ids

    def end(self, kind: EventKind, group_id: str, reason: str = "stale") -> None:
        self.log.append(kind, group_id=group_id, reason=reason)

    def checkpoint(self) -> int:
        """Returns the position that the manifest keeps."""
        position = self.log.position
        self.log.append(EventKind.CHECKPOINT, step=self.step)
        return position

    def resume(self, step: int, **fields: Any) -> None:
        self.step, self.version = step, WeightVersion(self.version.generation + 1, step)
        self.log.append(EventKind.RESUMED, generation=self.version.generation, step=step, **fields)
        self.publish()

    def stop(self) -> Path:
        self.log.append(EventKind.STOPPED, step=self.step, reason="the last phase was left")
        self.log.close()
        return self.path
