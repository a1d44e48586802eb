"""A complete run that is small enough for a test: every part is the real one, only the numbers are small."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from medr3.chaos.processes import Process, below
from medr3.evaluation.ablation import share_start
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
    share_start(finished, folder)
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


def descendants(pid: int) -> list[Process]:
    """All processes below one, found before it dies: afterwards nobody knows whose they were."""
    return [process for process in below([pid]) if process.pid != pid]


def end(process: subprocess.Popen[str]) -> None:
    """Ends what a failed test left behind, by the process group that it was started with."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
