from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from medr3.errors import UserError
from medr3.run.sole_driver import LOCK, sole_driver

HOLDS = """
import os, sys, time
from pathlib import Path
from medr3.run.sole_driver import sole_driver
with sole_driver(Path(sys.argv[1])):
    child = os.fork()
    if child:
        print(child, flush=True)
    time.sleep(60)
"""


@contextmanager
def holding(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A real second process that holds the folder; the child that it forked outlives it."""
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(folder)], stdout=subprocess.PIPE, text=True)
    child = 0
    try:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        yield process
        os.kill(child, 0)
    finally:
        process.kill()
        process.wait()
        if child:
            os.kill(child, signal.SIGKILL)


def test_a_second_driver_is_refused_and_told_who_the_first_is(tmp_path: Path) -> None:
    with holding(tmp_path) as other:
        told = f"another driver trains here .process {other.pid} on .*medr3 stop"
        with pytest.raises(UserError, match=told), sole_driver(tmp_path):
            pass


def test_a_driver_that_was_killed_keeps_nobody_out(tmp_path: Path) -> None:
    with holding(tmp_path) as other:
        other.kill()
        other.wait()
        with sole_driver(tmp_path):
            assert (tmp_path / LOCK).read_text().startswith("process ")


def test_folders_are_held_each_for_itself(tmp_path: Path) -> None:
    with holding(tmp_path / "one"), sole_driver(tmp_path / "two"):
        pass
