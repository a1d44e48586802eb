"""What a person says to a running run: files in its folder, each put there whole and taken once.

| file | says | is taken |
|---|---|---|
| control.json | go on to the next phase, stay, go back | after a step, by `medr3/run/deciding.py` |
| pool.json | how many engines | within seconds, by `medr3/run/scaling.py` |
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curriculum.controller import COMMANDS, Command
from medr3.run.manifest import write_json

CONTROL, TAKEN = "control.json", "control.taken.json"
POOL, POOL_TAKEN = "pool.json", "pool.taken.json"


class ControlRefused(ValueError):
    """The file says nothing that a run could do. It was taken, so the run goes on as if it had not been there."""


@dataclass(frozen=True, slots=True)
class Control:
    """One command to the curriculum, and when it was given (Unix seconds)."""

    command: Command
    time: float


@dataclass(frozen=True, slots=True)
class PoolSize:
    """How many engines a person wants, None: as many as the load does; and when it was said (Unix seconds)."""

    engines: int | None
    time: float


def write_control(folder: Path, control: Control) -> None:
    """Replaces a command that was not taken yet."""
    write_json(folder / CONTROL, {"command": control.command, "time": control.time})


def read_control(folder: Path) -> Control | None:
    """The command that waits, if any."""
    said = _taken(folder / CONTROL, folder / TAKEN)
    if said is None:
        return None
    with suppress(KeyError, TypeError, ValueError, OverflowError):
        if said["command"] in COMMANDS:
            return Control(said["command"], float(said["time"]))
    raise ControlRefused(f"{folder / TAKEN}: is no command; write one with: medr3 phase {'|'.join(COMMANDS)}")


def write_pool_size(folder: Path, size: PoolSize) -> None:
    """Replaces a number that was not taken yet."""
    write_json(folder / POOL, {"engines": size.engines, "time": size.time})


def read_pool_size(folder: Path) -> PoolSize | None:
    """The number that waits, if any."""
    said = _taken(folder / POOL, folder / POOL_TAKEN)
    if said is None:
        return None
    with suppress(KeyError, TypeError, ValueError, OverflowError):
        engines = said["engines"]
        if engines is None or (type(engines) is int and engines >= 1):
            return PoolSize(engines, float(said["time"]))
    raise ControlRefused(f"{folder / POOL_TAKEN}: is no number of engines; write one with: medr3 scale --engines N")


def _taken(waiting: Path, taken: Path) -> Any:
    """Moves a file away before it is read, so that one given meanwhile is kept, and none is carried out twice. None: there is none."""
    try:
        os.replace(waiting, taken)
    except FileNotFoundError:
        return None
    with suppress(OSError, ValueError, RecursionError):
        if (said := json.loads(taken.read_text(encoding="utf-8"))) is not None:
            return said
    return {}
