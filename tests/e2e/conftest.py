"""One whole run for all tests that look at what a run leaves behind, or begin where its cold start ended."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from medr3.chaos.processes import surviving
from medr3.run.control import Control, write_control
from medr3.run.manifest import MANIFEST
from tests.e2e import small_run

# Two versions of staleness; reports by an engine of their own; a second phase that is long enough to be killed in, and told to end.
FINISHED = ("rollout.max_staleness=2", "evaluation.engines=1", "curriculum.phases.retrieval.max_steps=60")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run through all three phases that was killed with SIGKILL in the second one, resumed, and told to advance."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    process = small_run.start(folder, *FINISHED)
    try:
        small_run.wait_until(lambda: "held-out after reasoning" in small_run.output(folder), process, folder, 400)
        small_run.wait_until(lambda: small_run.checkpointed_step(folder) >= 5, process, folder, 60)
        below = small_run.descendants(process.pid)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert below, "the run had no processes below its driver"
    finally:
        small_run.end(process)
    (folder / "killed.json").write_text((folder / MANIFEST).read_text())
    write_control(folder, Control("advance", time.time()))  # taken after the first step that follows
    process = small_run.start(folder, *FINISHED)
    try:
        assert process.wait(400) == 0, small_run.output(folder)[-3000:]
    finally:
        small_run.end(process)
    # Looked at last: Ray's own agents notice a death only when they next miss their control service, after a minute.
    assert not surviving(below, 60), "the driver's death left processes behind"
    return folder
