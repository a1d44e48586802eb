"""The panel of `medr3 train`: what it says, in terminals of any width, and that it leaves the lines above it alone."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from medr3.observe.terminal import ASCII, BLOCKS, Standing, Terminal, sparkline

FIELDS = {
    "state": "training", "phase": "joint", "step": 78, "reward": 1.2, "tokens_per_s": 1775.4, "last_checkpoint": 70, "step_s": 4.2,
    "engines": {"engine-0.0": "healthy", "engine-1.0": "healthy", "engine-2.3": "joining"}, "pool_target": 4, "eta_s": 500.0,
}  # fmt: skip


def standing() -> Standing:
    found = Standing("demo", {"joint": 80})
    found.told({"state": "preparing", "phase": "", "step": 0}, None, 0)
    for i in range(12):
        found.told(FIELDS | {"step": 67 + i, "reward": i / 10}, {"step": 67 + i - i % 3, "score": 0.5 + i / 40}, 66)
    return found


def test_the_panel_says_where_the_run_is_how_it_learns_how_fast_and_on_what() -> None:
    assert [line.plain for line in standing().lines(100, "learn", 3.2)] == [
        "demo · joint 12 of at most 80 · step 78 · learn 3 s",
        "reward   1.100 ▁▂▂▃▄▄▅▅▆▇▇█",
        "held-out 0.725 ▁▃▆█",
        "speed    1,775 tokens/s, 4.2 s a step, at most 8:20 to go",
        "engines  2 healthy, 1 joining, 4 wanted; checkpoint of step 70",
    ]


def test_before_the_first_step_it_names_what_is_prepared() -> None:
    found = Standing("demo")
    found.told({"state": "preparing", "phase": "", "step": 0}, None, 0)
    assert [line.plain for line in found.lines(80, "cold start", 61.0)] == ["demo · cold start 1:01"]


def test_the_last_step_of_a_phase_still_counts_in_it() -> None:
    found = standing()
    found.told(FIELDS | {"step": 79}, None, 79)
    assert found.lines(80, "sync", 0)[0].plain.startswith("demo · joint 13 of at most 80")


def test_a_new_phase_begins_new_curves() -> None:
    found = standing()
    found.told(FIELDS | {"phase": "last", "step": 79, "reward": 0.1}, None, 78)
    assert "reward   0.100 ▄" in [line.plain for line in found.lines(80, "learn", 0)]


@given(st.integers(1, 300))
def test_no_line_is_wider_than_the_terminal_and_ascii_stays_ascii(width: int) -> None:
    for marks in (BLOCKS, ASCII):
        lines = standing().lines(width, "rollout", 5, marks)
        assert max(line.cell_len for line in lines) <= width
    assert all(line.plain.isascii() for line in lines)


@settings(max_examples=50)
@given(st.lists(st.floats(-1e6, 1e6), max_size=300), st.integers(1, 60))
def test_a_sparkline_has_its_width_and_shows_its_extremes(values: list[float], width: int) -> None:
    drawn = sparkline(values, width)
    assert len(drawn) <= width
    assert bool(drawn) == bool(values)
    if len(set(drawn)) > 1:
        assert {BLOCKS[0], BLOCKS[-1]} <= set(drawn)


def test_there_is_no_panel_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert Terminal.opened("demo", {}, lambda: "learn") is None


def test_colours_are_left_out_on_request() -> None:
    for no_color in (False, True):
        console = Console(file=io.StringIO(), force_terminal=True, color_system="standard", no_color=no_color, width=80)
        console.print(Terminal(standing(), lambda: "learn", console))
        written = console.file
        assert isinstance(written, io.StringIO)
        assert ("\x1b[36m" in written.getvalue()) is not no_color


PROGRAM = """
import sys, time
from medr3.observe.terminal import Terminal
terminal = Terminal.opened("demo", {"joint": 80}, lambda: "learn")
print("panel" if terminal else "no panel", flush=True)
for step in (1, 2, 3):
    print(f"step {step}  joint", flush=True)
    if terminal:
        terminal.told({"phase": "joint", "step": step, "reward": 0.5}, None, 0)
        time.sleep(0.6)
if terminal:
    terminal.close()
print("over", flush=True)
"""


def in_terminal(kind: str) -> str:
    """What a terminal of 50 columns gets."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 50, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
    child = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=slave, stderr=slave, env=environment | {"TERM": kind})
    os.close(slave)
    written = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # the other side is closed
            break
        if not piece:
            break
        written += piece
    os.close(master)
    assert child.wait(30) == 0, written.decode()
    return written.decode()


def test_in_a_real_terminal_the_lines_stay_and_the_panel_goes() -> None:
    written = in_terminal("xterm-256color")
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written).replace("\r", "")
    for line in ("panel", "step 1  joint", "step 2  joint", "step 3  joint", "over"):
        assert plain.count(f"{line}\n") == 1, "each line is written once, and whole"
    assert "joint 2 · step 2" in plain
    assert written.count("\x1b[?25l") == written.count("\x1b[?25h") == 1, "the cursor is given back"
    assert written.rstrip().endswith("over"), "the panel is gone"


def test_a_terminal_that_cannot_move_its_cursor_gets_the_lines_alone() -> None:
    assert in_terminal("dumb").replace("\r", "") == "no panel\nstep 1  joint\nstep 2  joint\nstep 3  joint\nover\n"
