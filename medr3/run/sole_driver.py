"""One driver at a time in a run's folder: two would write the same events, rows and checkpoints."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from medr3.errors import UserError

LOCK = "driver.lock"
HELD = (errno.EACCES, errno.EAGAIN)


@contextmanager
def sole_driver(folder: Path) -> Iterator[None]:
    """Holds the folder until the block or the process ends, however it ends; refuses where another process holds it.

    A POSIX lock: no child inherits it, so processes that outlive a killed driver keep nobody out; NFS passes it on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+", encoding="utf-8") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in HELD:
                raise UserError(
                    f"{folder}: another driver trains here ({_holder(folder / LOCK)}): medr3 status {folder} shows it,"
                    f" medr3 stop {folder} ends it; or give this run another run.folder"
                ) from None
            if error.errno != errno.ENOLCK:  # a file system without locks: trained on it is all the same
                raise
        with suppress(OSError):  # a full disk: only the other one's line is poorer
            lock.truncate(0)
            os.pwrite(lock.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield


def _holder(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")[:200] or "it has just begun"
