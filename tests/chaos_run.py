"""A run folder of three steps, undisturbed or killed after the second one, made by the real writers."""

from __future__ import annotations

from pathlib import Path

from tests.run_folder import RunFolder
from trajectories.events import EventKind


def make_run(folder: Path, *, killed: bool) -> Path:
    """Three steps in one phase; a run that is killed makes the second one twice."""
    run = RunFolder(folder)
    run.log.append(EventKind.PHASE_ENTERED, phase="joint", step=0)
    run.train()
    position = run.checkpoint()
    run.train()
    if killed:
        run.resume(1, position=position)
        run.train()
    run.train()
    run.log.append(EventKind.PHASE_LEFT, phase="joint", step=3, left_by="max_steps", reason="long enough")
    run.stop()
    return folder
