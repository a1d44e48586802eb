"""A complete run that is small enough for a test: every part is the real one, only the numbers are small."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from medr3.run.manifest import MANIFEST

REPOSITORY = Path(__file__).parents[2]

# Gates are off: this model is not good, it only has to end its episodes now and then.
SMALL = (
    "run.checkpoint_every=1", "run.stall_timeout_s=240",
    "world.training_worlds=2", "cold_start.drill_gate=0", "cold_start.imitation_gate=0",
    "cold_start.drills_kept_gate=0", "cold_start.imitation_steps=100", "cold_start.demonstrations=2000",
    "rollout.group_size=4", "rollout.groups_per_step=8",
    "evaluation.probe_questions=20", "evaluation.test_questions=20", "learner.cpu_threads=1", "rollout.engine.cpu_threads=1",
    *(f"curriculum.phases.{phase}.{setting}" for phase in range(3) for setting in ("min_steps=1", "max_steps=4", "plateau.probe_every=2")),
)  # fmt: skip


def command(folder: Path, *overrides: str, resume: str = "auto") -> list[str]:
    train = [sys.executable, "-m", "medr3.cli", "train", "configs/demo.yaml", "--resume", resume]
    return [*train, *SMALL, f"run.folder={folder}", f"run.name={folder.name}", *overrides]


def start(
    folder: Path, *overrides: str, resume: str = "auto", environment: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """Starts a run in a process group of its own, with its output in a file beside the folder."""
    log = folder.with_suffix(".log").open("a")
    return subprocess.Popen(
        command(folder, *overrides, resume=resume),
        cwd=REPOSITORY,
        stdout=log,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=environment,
    )


def begin_from(finished: Path, folder: Path) -> Path:
    """A folder in which a run with another's worlds finds its index and its cold start: what they cost is paid once."""
    folder.mkdir()
    for name in ("index", "cold_start"):
        shutil.copytree(finished / name, folder / name)
    shutil.copy2(finished / "config.json", folder)
    return folder


def checkpointed_step(folder: Path) -> int:
    path = folder / MANIFEST
    return int(json.loads(path.read_text())["step"]) if path.exists() else 0


def output(folder: Path) -> str:
    return folder.with_suffix(".log").read_text()


def wait_until(true: Callable[[], bool], process: subprocess.Popen[str], folder: Path, seconds: float) -> None:
    """Until something has happened; a process that ends before is a failure that shows its output."""
    deadline = time.monotonic() + seconds
    while not true():
        assert process.poll() is None, f"ended with {process.returncode}:\n{output(folder)[-3000:]}"
        assert time.monotonic() < deadline, f"not within {seconds} s:\n{output(folder)[-3000:]}"
        time.sleep(0.2)


def descendants(pid: int) -> dict[int, str]:
    """All processes below one with their command lines, found before it dies: afterwards nobody knows whose they were."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, waiting = set(), [pid]
    while waiting:
        for child in children.get(waiting.pop(), []):
            if child not in found:
                found.add(child)
                waiting.append(child)
    return {child: _command(child) for child in found}


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:120]
    except OSError:
        return "ended"


def survivors(pids: dict[int, str], seconds: float) -> dict[int, str]:
    """Which of the processes still live after so long (zombies are dead)."""
    deadline = time.monotonic() + seconds
    while True:
        living = {pid: command for pid, command in pids.items() if _lives(pid)}
        if not living or time.monotonic() > deadline:
            return living
        time.sleep(0.2)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def end(process: subprocess.Popen[str]) -> None:
    """Ends what a failed test left behind, by the process group that it was started with."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
