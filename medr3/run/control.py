"""What a person says to a running run: a file in its folder, put there whole and taken once."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from curriculum.controller import COMMANDS, Command
from medr3.run.manifest import write_json

CONTROL, TAKEN = "control.json", "control.taken.json"


class ControlRefused(ValueError):
    """The file says nothing that a run could do. It was taken, so the run goes on as if it had not been there."""


@dataclass(frozen=True, slots=True)
class Control:
    """One command to the curriculum, and when it was given (Unix seconds)."""

    command: Command
    time: float


def write_control(folder: Path, control: Control) -> None:
    """Replaces a command that was not taken yet."""
    write_json(folder / CONTROL, {"command": control.command, "time": control.time})


def read_control(folder: Path) -> Control | None:
    """The command that waits, if any. It is moved away first, so that one given meanwhile is kept, and none is carried out twice."""
    taken = folder / TAKEN
    try:
        os.replace(folder / CONTROL, taken)
    except FileNotFoundError:
        return None
    with suppress(OSError, ValueError, KeyError, TypeError):
        said = json.loads(taken.read_text(encoding="utf-8"))
        if said["command"] in COMMANDS:
            return Control(said["command"], float(said["time"]))
    raise ControlRefused(f"{taken}: is no command; write one with: medr3 phase {'|'.join(COMMANDS)}")
