"""metrics.jsonl: one line per learner step, readable while the run goes on and after it was killed."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

from trajectories.event_fields import is_integer, is_number


class MetricsFile:
    """Appends steps in order. `resume_step` drops the lines after it: those steps are run again, and count once.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "metrics.jsonl"
        >>> file = MetricsFile(path)
        >>> file.append(1, "reasoning", {"reward/mean": 0.5})
        >>> file.close()
        >>> read_metrics(path)[0]["reward/mean"]
        0.5
    """

    def __init__(self, path: Path, resume_step: int | None = None) -> None:
        self.path = path
        self._last_step = -1
        if path.exists():
            _cut_torn_line(path)
            rows = read_metrics(path)
            kept = [row for row in rows if resume_step is None or row["step"] <= resume_step]
            if len(kept) < len(rows):
                draft = path.with_suffix(".draft")
                draft.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
                draft.replace(path)
            self._last_step = kept[-1]["step"] if kept else -1
        self._file = path.open("a", encoding="utf-8")

    def append(self, step: int, phase: str, metrics: dict[str, float]) -> None:
        """Writes and flushes one step. JSON has no NaN: null says that the figure was there and was no number."""
        if step <= self._last_step:
            raise ValueError(f"{self.path}: step {step} after step {self._last_step}: one line per step, in order")
        finite = {name: float(value) if math.isfinite(value) else None for name, value in metrics.items()}
        self._file.write(json.dumps({"step": step, "phase": phase, "time": time.time(), **finite}) + "\n")
        self._file.flush()
        self._last_step = step

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines; none where the file is absent. A torn last line is left out, damage elsewhere is a ValueError."""
    if not path.exists():
        return []
    *lines, _torn = path.read_bytes().split(b"\n")
    return [parse_metrics(line, f"{path}:{number}") for number, line in enumerate(lines, start=1)]


def parse_metrics(line: bytes, where: str) -> dict[str, Any]:
    """One line: a step, its phase, and figures, or null where one was no number. `where` names it in the ValueError."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON ({error}); the file is damaged") from None
    if not isinstance(row, dict) or not is_integer(row.get("step")) or not isinstance(row.get("phase", ""), str):
        raise ValueError(f"{where}: has no step, or its phase is no name; the file is damaged")
    for name, value in row.items():
        if name != "phase" and value is not None and not is_number(value):
            raise ValueError(f"{where}: {name[:80]!r} is {repr(value)[:80]}, no number; the file is damaged")
    return row


def _cut_torn_line(path: Path) -> None:
    content = path.read_bytes()
    os.truncate(path, content.rfind(b"\n") + 1)
