"""Tells a run that is training to leave its phase, to stay in it, or to go back."""

from __future__ import annotations

import time
from pathlib import Path

from curriculum.controller import COMMANDS, Command
from medr3.errors import UserError, did_you_mean
from medr3.ops.local import run_status
from medr3.run.control import CONTROL, Control, write_control

MEANING: dict[Command, str] = {
    "advance": "go on to the next phase", "hold": "stay in its phase", "back": "return to the phase before this one",
    "auto": "decide by its rules again",
}  # fmt: skip


def ask(run_folder: Path, command: str) -> str:
    """Writes the command into the run's folder; returns what follows, in words. A run elsewhere that shares the folder obeys as well."""
    chosen = next((known for known in COMMANDS if known == command), None)
    if chosen is None:
        raise UserError(f"{command}: no such command; there are {', '.join(COMMANDS)}{did_you_mean(command, COMMANDS)}")
    status = run_status(run_folder)
    if status.get("state") in ("finished", "failed", "stopped") or status.get("alive") is False:
        raise UserError(f"{run_folder}: is not running, so nothing would take the command: start it with medr3 train")
    replaced = (run_folder / CONTROL).exists()
    write_control(run_folder, Control(chosen, time.time()))
    phase = f" (now in phase {status['phase']})" if status.get("phase") else ""
    instead = ", in place of a command that it had not taken yet" if replaced else ""
    return f"asked {run_folder} to {MEANING[chosen]} after its current step{phase}{instead}"
