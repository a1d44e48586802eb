"""heldout.jsonl: what every stage was reported to do, question by question, so that runs can be compared.

A report stands here as soon as it was made; the manifest knows of it from its next checkpoint on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from medr3.errors import UserError

HELDOUT = "heldout.jsonl"


class HeldOut(NamedTuple):
    """One report: the questions of `phase`, asked after `stage`; `cell` is what the summary says of it."""

    stage: str
    phase: str
    correct: dict[str, bool]
    cell: dict[str, Any] | None = None


def append_heldout(
    run_folder: Path, stage: str, phase: str, correct: Mapping[str, bool], cell: Mapping[str, Any] | None = None
) -> None:
    """A stage that is measured again, after a resume, stands there twice; the later line counts."""
    line = json.dumps({"stage": stage, "phase": phase, "correct": dict(correct), "cell": cell})
    with (run_folder / HELDOUT).open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def read_heldout(run_folder: Path) -> list[HeldOut]:
    """In order of the stages; the last line of each stage and phase. A line that a crash cut off is left out.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for right in (False, True):
        ...     append_heldout(folder, "joint", "joint", {"q1": right})
        >>> read_heldout(folder)
        [HeldOut(stage='joint', phase='joint', correct={'q1': True}, cell=None)]
    """
    path = run_folder / HELDOUT
    *lines, _cut_off = path.read_bytes().split(b"\n") if path.exists() else [b""]
    found: dict[tuple[str, str], HeldOut] = {}
    for number, line in enumerate(lines, start=1):
        row = _parsed(line, f"{path}:{number}")
        found.pop((row.stage, row.phase), None)
        found[row.stage, row.phase] = row
    return list(found.values())


def _parsed(line: bytes, where: str) -> HeldOut:
    """One line; `where` names it in the UserError."""
    try:
        row = HeldOut(**json.loads(line))
    except (ValueError, TypeError, RecursionError):
        row = HeldOut("", "", {})
    named = isinstance(row.stage, str) and isinstance(row.phase, str) and row.stage and row.phase
    answers = isinstance(row.correct, dict) and all(isinstance(right, bool) for right in row.correct.values())
    if not named or not answers or not isinstance(row.cell, dict | None):
        raise UserError(f"{where}: is no report on held-out questions: the file is damaged")
    return row
