"""Going back after a collapse: the newest checkpoint from before it becomes what the run resumes from, in a new generation.

A roll-back is a resume that the run orders itself: the manifest of the checkpoint is put in the place of the run's, with what must not
be forgotten (how often it was rolled back, and why), and everything is started anew from it.
"""

from __future__ import annotations

from curriculum.controller import Decision
from medr3.run.deciding import TrainingCollapsed
from medr3.run.manifest import CheckpointRecord, open_manifest, prune_checkpoints, write_manifest
from medr3.run.state import RunState
from trajectories.events import EventKind


def roll_back(state: RunState, decision: Decision) -> None:
    """From the moment that this returns, a resume starts before the collapse."""
    since, folder = decision.evidence["since"], state.config.run.folder
    record = _newest_before(since, state.checkpoints)
    manifest = open_manifest(folder / record.folder) if record else None
    if record is None or manifest is None:
        raise TrainingCollapsed(
            f"phase {decision.phase!r}: {decision.reason}: there is no checkpoint from before step {since}; lower run.checkpoint_every"
        )
    step = state.progress.step
    state.controller.rolled_back(manifest.controller)
    rollbacks = [*state.progress.rollbacks, {"from": step, "to": record.step, "reason": decision.reason}]
    state.journal.events.append(
        EventKind.ROLLED_BACK, phase=decision.phase, step=step, to_step=record.step, reason=decision.reason
    )
    state.journal.sync()
    manifest = manifest.model_copy(
        update={
            "generation": state.version.generation,
            "checkpoints": [kept for kept in state.checkpoints if kept.step <= record.step],
            "controller": state.controller.snapshot(),
            "progress": manifest.progress | {"rollbacks": rollbacks},
        }
    )
    write_manifest(folder, manifest)
    prune_checkpoints(folder, manifest)
    state.journal.say(f"phase {decision.phase}: {decision.reason}; going back from step {step} to step {record.step}")


def _newest_before(step: int, checkpoints: list[CheckpointRecord]) -> CheckpointRecord | None:
    return max((record for record in checkpoints if record.step < step), key=lambda record: record.step, default=None)
