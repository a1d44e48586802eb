"""heldout.jsonl: what every stage was reported to do, question by question, so that runs can be compared.

A report stands here as soon as it was made; the manifest knows of it from its next checkpoint on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

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
    *lines, _cut_off = path.read_text(encoding="utf-8").split("\n") if path.exists() else [""]
    found: dict[tuple[str, str], HeldOut] = {}
    for line in lines:
        row = HeldOut(**json.loads(line))
        found.pop((row.stage, row.phase), None)
        found[row.stage, row.phase] = row
    return list(found.values())
