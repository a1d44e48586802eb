"""`medr3 train` as a process beside the benchmark, watched through what it writes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
ENDED_WITHIN_S = 60


@contextmanager
def training(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A run in `folder`, which the arguments name as well; asked to end after its step, and ended where it does not."""
    command = [sys.executable, "-m", "medr3.cli", "train", *arguments]
    with folder.with_suffix(".log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, stdout=log, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(ENDED_WITHIN_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def wait_for_rows(count: int, process: subprocess.Popen[str], folder: Path, within_s: float) -> list[dict[str, Any]]:
    """The rows of at least so many training steps, as soon as they are written down."""
    deadline = time.monotonic() + within_s
    while len(found := rows(folder)) < count:
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"no step {count} of the training in {folder}: {said(folder)[-2000:]}")
        time.sleep(0.05)
    return found


def rows(folder: Path) -> list[dict[str, Any]]:
    """Of training steps; other rows are examinations."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return [row for row in found if "learner/loss" in row]


def said(folder: Path) -> str:
    return folder.with_suffix(".log").read_text()
