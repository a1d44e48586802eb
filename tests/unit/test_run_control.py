"""A person's word to a running run: written whole, taken once, refused in one line where nobody would take it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medr3.cli import app
from medr3.errors import UserError
from medr3.ops.control import ask
from medr3.run.control import CONTROL, Control, ControlRefused, read_control, write_control


def run_folder(tmp_path: Path, **status: object) -> Path:
    told = {"state": "training", "phase": "joint", "host": "a-host-of-a-cluster"} | status
    (tmp_path / "status.json").write_text(json.dumps(told), encoding="utf-8")
    return tmp_path


def test_a_command_is_taken_once(tmp_path: Path) -> None:
    assert read_control(tmp_path) is None
    write_control(tmp_path, Control("advance", 12.5))
    assert read_control(tmp_path) == Control("advance", 12.5)
    assert read_control(tmp_path) is None


def test_the_last_word_counts_and_one_given_meanwhile_is_kept(tmp_path: Path) -> None:
    for command in ("hold", "back"):
        write_control(tmp_path, Control(command, 1.0))
    taken = read_control(tmp_path)
    assert taken is not None and taken.command == "back"
    write_control(tmp_path, Control("auto", 2.0))
    assert read_control(tmp_path) == Control("auto", 2.0)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"command": "explode", "time": 1}', '{"command": ["hold"], "time": 1}', "\x00", '{"command": "hold"}'],
)
def test_what_is_no_command_is_named_and_out_of_the_way(tmp_path: Path, text: str) -> None:
    (tmp_path / CONTROL).write_text(text, encoding="utf-8")
    with pytest.raises(
        ControlRefused, match=r"control.taken.json: is no command; write one with: medr3 phase advance\|hold\|back\|auto"
    ):
        read_control(tmp_path)
    assert read_control(tmp_path) is None


def test_asking_tells_what_follows(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    assert ask(folder, "hold") == f"asked {folder} to stay in its phase after its current step (now in phase joint)"
    assert ask(folder, "advance").endswith("in place of a command that it had not taken yet")
    taken = read_control(folder)
    assert taken is not None and taken.command == "advance"


@pytest.mark.parametrize(
    ("status", "command", "words"),
    [
        ({}, "advnce", "advnce: no such command; there are advance, hold, back, auto: did you mean advance?"),
        ({"state": "finished"}, "advance", "is not running, so nothing would take the command"),
        ({"state": "stopped"}, "back", "is not running"),
    ],
)
def test_a_command_that_nobody_would_take_is_refused(
    tmp_path: Path, status: dict[str, object], command: str, words: str
) -> None:
    folder = run_folder(tmp_path, **status)
    with pytest.raises(UserError) as refused:
        ask(folder, command)
    assert words in str(refused.value) and "\n" not in str(refused.value)
    assert not (folder / CONTROL).exists()


def test_the_command_line_says_it_too(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    asked = CliRunner().invoke(app, ["phase", "back", str(folder)])
    assert (
        asked.output == f"asked {folder} to return to the phase before this one after its current step (now in phase joint)\n"
    )
    taken = read_control(folder)
    assert taken is not None and taken.command == "back"
    assert isinstance(CliRunner().invoke(app, ["phase", "up", str(folder)]).exception, UserError)
