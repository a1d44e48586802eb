"""Whoever reads what a command prints may go away at any moment: no command hangs, none shows a traceback, and a run goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TIMEOUT_S = 60
RUN = """
import sys
from pathlib import Path
from medr3.run.unheard import survive_readers
survive_readers()
survive_readers()
for step in range(2_000):
    print("step", step, flush=step % 2)
    print("step", step, file=sys.stderr)
Path(sys.argv[1]).write_text("went on")
"""


def with_closed_pipe(command: list[str], *, stderr_too: bool) -> subprocess.CompletedProcess[str]:
    read, write = os.pipe()
    os.close(read)
    try:
        return subprocess.run(
            [sys.executable, *command], stdout=write, stderr=write if stderr_too else subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
            timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
    finally:
        os.close(write)


@pytest.mark.parametrize("stderr_too", [False, True])
def test_a_run_whose_reader_has_gone_goes_on(tmp_path: Path, stderr_too: bool) -> None:
    done = with_closed_pipe(["-c", RUN, str(tmp_path / "end")], stderr_too=stderr_too)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "end").read_text() == "went on"
    assert stderr_too or ("step 1999" in done.stderr and "Traceback" not in done.stderr and "ignored" not in done.stderr)


@pytest.mark.parametrize("words", [["rewards", "list"], ["data", "formats"]])
def test_a_command_whose_reader_has_gone_ends_quietly(words: list[str]) -> None:
    done = with_closed_pipe(["-m", "medr3.cli", *words], stderr_too=False)
    assert done.returncode == 1
    assert done.stderr == ""
