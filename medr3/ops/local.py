"""Runs on this machine: found by their folder, described by their status.json, ended by their process id."""

from __future__ import annotations

import os
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from medr3.errors import UserError, did_you_mean
from medr3.json_file import read_object
from medr3.run_shapes import Status, wrong_in

RUNS = Path("runs")
SIGNAL_S = 0.5  # two signals of a kind that come together are one


def find_run(target: str | None) -> Path:
    """The folder of a run: a path, a name below runs/, or without either the run that was written to last."""
    known = sorted(
        (path.parent for path in RUNS.glob("*/status.json")), key=lambda folder: (folder / "status.json").stat().st_mtime
    )
    if target is None:
        if not known:
            raise UserError(f"no run in {RUNS.resolve()}: start one with medr3 train, or name its folder")
        return known[-1]
    for folder in (Path(target), RUNS / target):
        with suppress(OSError, ValueError):  # longer than a name can be, or none that a file may have
            if folder.is_dir():
                return folder
    raise UserError(
        f"{target}: no such run folder, here or below {RUNS}/{did_you_mean(target, [folder.name for folder in known])}"
    )


def run_status(run_folder: Path) -> dict[str, Any]:
    """The run's own word, and whether its process still lives: a killed run cannot say that it ended."""
    path = run_folder / "status.json"
    if not path.exists():
        raise UserError(f"{path} does not exist: the run has not started, or {run_folder} is no run folder")
    status = read_object(path)
    if wrong := wrong_in(status, Status):
        raise UserError(f"{path}: {wrong}: the file is damaged")
    if "pid" in status and status.get("host", socket.gethostname()) == socket.gethostname():
        status["alive"] = _is_training(int(status["pid"]))
    return status


def stop_run(run_folder: Path, *, at_once: bool = False) -> str:
    """Sends SIGTERM to the run's driver, which writes its last checkpoint and ends what it started; a second one hurries it."""
    status = run_status(run_folder)
    if "alive" not in status:
        raise UserError(
            f"{run_folder}: runs on {status.get('host', 'an unknown machine')}: stop it there, or by --address and job"
        )
    if not status["alive"]:
        raise UserError(f"{run_folder}: its process {status['pid']} has ended already")
    for _ in range(2 if at_once else 1):
        os.kill(int(status["pid"]), signal.SIGTERM)
        time.sleep(SIGNAL_S if at_once else 0)
    return f"asked process {status['pid']} of {run_folder} to end"


def _is_training(pid: int) -> bool:
    """Process ids are used again, so the id alone proves nothing: the command line must be ours too."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return b"medr3" in command
