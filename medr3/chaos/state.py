"""The hash of a training state: what a checkpoint was written with, and what a learner holds after it has loaded it."""

from __future__ import annotations

import json
from pathlib import Path

from trajectories.events import Event, EventKind


def saved_state(run_folder: Path) -> tuple[int | None, str]:
    """The step of the manifest that a resume starts from, and the hash in its checkpoint; None and nothing where there is none."""
    path = run_folder / "manifest.json"
    if not path.exists():
        return None, ""
    manifest = json.loads(path.read_text(encoding="utf-8"))
    state = run_folder / manifest["checkpoints"][-1]["folder"] / "state.json"
    return manifest["step"], json.loads(state.read_text(encoding="utf-8")).get("hash", "") if state.exists() else ""


def loaded_state(events: list[Event], began: float) -> str:
    """What the driver that began then said its learner had loaded; empty where it did not come so far."""
    told = [event for event in events if event.kind is EventKind.PUBLISHED and event.time > began and "state" in event.fields]
    return str(told[0]["state"]) if told else ""
