"""Tells a run that is training to change its phase, or how many engines it has."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from curriculum.controller import COMMANDS, Command
from medr3.errors import UserError, did_you_mean
from medr3.json_file import read_object
from medr3.ops.local import run_status
from medr3.run.control import CONTROL, POOL, Control, PoolSize, write_control, write_pool_size

MEANING: dict[Command, str] = {
    "advance": "go on to the next phase", "hold": "stay in its phase", "back": "return to the phase before this one",
    "auto": "decide by its rules again",
}  # fmt: skip
MOST_ENGINES = 10_000  # more is a slip of the finger


def ask(run_folder: Path, command: str) -> str:
    """Writes the command into the run's folder; returns what follows, in words. A run elsewhere that shares the folder obeys as well."""
    chosen = next((known for known in COMMANDS if known == command), None)
    if chosen is None:
        raise UserError(f"{command}: no such command; there are {', '.join(COMMANDS)}{did_you_mean(command, COMMANDS)}")
    status = _running(run_folder)
    replaced = (run_folder / CONTROL).exists()
    write_control(run_folder, Control(chosen, time.time()))
    phase = f" (now in phase {status['phase']})" if status.get("phase") else ""
    return f"asked {run_folder} to {MEANING[chosen]} after its current step{phase}{_instead(replaced)}"


def resize(run_folder: Path, engines: str) -> str:
    """Sets how many engines a run is to have, or gives that back to its load; returns what follows, in words."""
    number = None if engines == "auto" else _number(engines)
    status = _running(run_folder)
    rollout: dict[str, Any] = read_object(run_folder / "config.json")["rollout"]
    if rollout["colocated"]:
        raise UserError(f"{run_folder}: its engines share the learner's hardware (rollout.colocated), so their number is fixed")
    replaced = (run_folder / POOL).exists()
    write_pool_size(run_folder, PoolSize(number, time.time()))
    now = f" (now {len(status['engines'])})" if "engines" in status else ""
    back = "the number that its load asks for" if rollout["autoscale"] else f"its own {rollout['num_engines']} engines"
    wanted = back if number is None else f"{number} engine{'s' if number > 1 else ''}"
    return f"asked {run_folder} for {wanted}{now}{_instead(replaced)}"


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > len(str(MOST_ENGINES)) or not 1 <= int(text) <= MOST_ENGINES:
        raise UserError(f"--engines {text}: give a number from 1 to {MOST_ENGINES}, or auto")
    return int(text)


def _running(run_folder: Path) -> dict[str, Any]:
    status = run_status(run_folder)
    if status.get("state") in ("finished", "failed", "stopped", "interrupted") or status.get("alive") is False:
        raise UserError(f"{run_folder}: is not running, so nothing would take the command: start it with medr3 train")
    return status


def _instead(replaced: bool) -> str:
    return ", in place of a command that it had not taken yet" if replaced else ""
