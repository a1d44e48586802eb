"""Replies on disk, by the hash of what was asked: shared by processes, and never half written."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from hashlib import sha256
from pathlib import Path


def content_key(*parts: str) -> str:
    """One name for what was asked; the parts cannot run into each other.

    Example:
        >>> content_key("a", "bc") == content_key("ab", "c")
        False
    """
    return sha256(json.dumps(parts).encode()).hexdigest()


class ReplyCache:
    """A folder of small files. Two processes that write the same reply write the same content; the later one stays.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     cache = ReplyCache(folder)
        ...     cache.put("00ff", "{}")
        ...     cache.get("00ff"), cache.get("00fe")
        ('{}', None)
    """

    def __init__(self, folder: Path | str) -> None:
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)

    def get(self, key: str) -> str | None:
        try:
            return self._path(key).read_text(encoding="utf-8")
        except (OSError, UnicodeError):  # a file that cannot be read is a question that is asked again
            return None

    def put(self, key: str, reply: str) -> None:
        """Keeps a reply; a full disk or a reply that UTF-8 cannot carry costs the same question later, not the run."""
        path = self._path(key)
        unfinished = path.with_name(f"{key}.{os.getpid()}.{uuid.uuid4().hex}")
        try:
            path.parent.mkdir(exist_ok=True)
            unfinished.write_text(reply, encoding="utf-8")
            os.replace(unfinished, path)
        except (OSError, UnicodeError):
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / key
