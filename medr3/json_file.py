"""Small JSON files of runs and of their users. What is wrong with one is one line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medr3.errors import UserError

ANEW = "name a new one, --out"  # what a command that was begun says of an output that it cannot go on with


def read_object(path: Path, advice: str = "") -> dict[str, Any]:
    """The object in a file; `advice` says what to do where it cannot be read.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "status.json"
        >>> _ = path.write_text('{"step": 7}')
        >>> read_object(path)
        {'step': 7}
    """
    mend = f": {advice}" if advice else ""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}{mend}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is no JSON: {' '.join(str(error).split())}{mend}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: must hold one JSON object, not {type(found).__name__}{mend}")
    return found


@contextmanager
def as_written(path: Path, advice: str) -> Iterator[None]:
    """What is done with a file's content in this block holds where the file is as this program writes it; else it is one line."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise UserError(f"{path}: is not as it was written ({type(error).__name__}): {advice}") from None
