"""Where cases are put that readers want as files."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

DATA = Path(__file__).parents[1] / "data"


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """One for the whole process; it goes with it."""
    return tempfile.TemporaryDirectory(prefix="medr3-fuzz-")


def scratch(*names: str) -> Path:
    """A path of this process below a folder of its own."""
    path = Path(_folder().name, *names)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def written(case: bytes, *names: str) -> Path:
    """The case as a file."""
    path = scratch(*names)
    path.write_bytes(case)
    return path
