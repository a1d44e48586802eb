"""Whatever a person gives a command that it cannot take, the answer is one line; docs/bad_inputs.md shows them all.

The page is written anew with `MEDR3_WRITE_BAD_INPUTS=1 pytest tests/unit/test_bad_inputs.py`.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import typer

import medr3.cli
from medr3.ops import preflight
from medr3.ops.check import Check
from tests.bad_inputs import ANY, BAD, PORT, ROOT, Bad, furnish, taken_port
from tests.bad_outcomes import outcomes

SHOWN = 320  # characters of a line on the page
PAGE = ROOT / "docs" / "bad_inputs.md"
HEAD = """# Bad inputs

What a person gives a command that it cannot take, and the line that comes back. Exit code 2: nothing was started, and the line
says what to mend. Exit code 1: the command did its work, and its finding is a fault, such as malformed rows or a broken promise.
Where the parser of the command line answers, its hint on usage stands above the line. A configuration gets one line for each
mistake, and files of rows one for each row. A reader that goes away (`medr3 … | head`) ends a command quietly with exit code 1;
a training goes on. No line holds control characters or more than 2,000 others. `MEDR3_DEBUG=1` shows the traceback.
`tests/unit/test_bad_inputs.py` runs these commands and fails where this page says anything else; `make fuzz` tries what nobody
thought of ([record](records/fuzz.md)).
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("bad")
    furnish(made)
    return made


@pytest.fixture(scope="module", autouse=True)
def parser() -> Iterator[None]:
    """Typer makes its parser anew at every call, which takes longer than most of these commands."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(medr3.cli, "app", typer.main.get_command(medr3.cli.app))
        yield


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with taken_port() as number:
        yield number


def answer(words: list[str]) -> tuple[int, list[str], list[str]]:
    """Exit code, the lines on stderr and those on stdout of the real command line."""
    out, err, code, before = io.StringIO(), io.StringIO(), 0, sys.argv
    sys.argv = ["medr3", *words]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            medr3.cli.main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        sys.argv = before
    return code, err.getvalue().splitlines(), out.getvalue().splitlines()


ANSWERS: dict[tuple[str, str], tuple[Bad, list[str], int]] = {}
OUTCOMES: dict[str, list[tuple[str, str]]] = {}


@pytest.mark.parametrize(
    ("section", "bad"),
    [(section, bad) for section, rows in BAD.items() for bad in rows],
    ids=lambda each: getattr(each, "given", each),
)
def test_one_line(section: str, bad: Bad, folder: Path, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for check in ("memory", "shared_memory", "disk"):  # what this machine has left is no part of the page
        monkeypatch.setattr(preflight, f"check_{check}", lambda *asked, check=check: Check(check, True, "", ""))
    code, err, out = answer(shlex.split(bad.words.replace(PORT, str(port))))
    said = err or out[:2]
    assert code == bad.code, (code, said)
    assert bad.lines in (ANY, len(err)), err
    assert not any("Traceback" in line for line in [*err, *out])
    shown = [line for line in said if line.startswith(("medr3: ", "Error: ", "violation: ")) or bad.lines == 0]
    assert shown, said
    plain = [re.sub(rf"\b{port}\b", "PORT", line.replace(f"{folder}/", "").replace(f"{ROOT}/", "")) for line in shown]
    ANSWERS[section, bad.given] = (bad, plain, code)


def test_what_is_no_command(folder: Path) -> None:
    found = outcomes(folder)
    said = {given: answer for rows in found.values() for given, answer in rows}
    assert all("\n" not in answer for answer in said.values())
    assert said["k = 0"].startswith("422") and said["a body beyond the limit"].startswith("413")
    assert "`loop`" in said["the same over and over"] and "`malformed`" in said["documents alone"]
    OUTCOMES.update(found)


def test_the_page_says_what_the_commands_say() -> None:
    if len(ANSWERS) < sum(map(len, BAD.values())) or not OUTCOMES:
        pytest.skip("only with all of the rows above")
    if os.environ.get("MEDR3_WRITE_BAD_INPUTS"):
        PAGE.write_text(page(), encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page()


def page() -> str:
    parts = [HEAD]
    for section in BAD:
        parts += [f"\n## {section}\n", "| given | command | answer | exit |", "|---|---|---|---:|"]
        for (at, _), (bad, lines, code) in ANSWERS.items():
            if at == section:
                words = bad.words.replace(PORT, "PORT")
                parts.append(
                    f"| {bad.given} | `{_cell(words)}` | {'<br>'.join(f'`{_cell(line)}`' for line in lines)} | {code} |"
                )
    for section, rows in OUTCOMES.items():
        parts += [f"\n## {section}\n", "| given | what becomes of it |", "|---|---|"]
        parts += [f"| {given} | {answer.replace('|', chr(92) + '|')} |" for given, answer in rows]
    return "\n".join(parts) + "\n"


def _cell(text: str) -> str:
    text = text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
    return text.removeprefix("medr3: ").replace("|", "\\|").replace("`", "'")
