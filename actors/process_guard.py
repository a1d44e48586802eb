"""Lets a process that multiprocessing started die with its parent, however the parent dies."""

from __future__ import annotations

import multiprocessing
import os
import threading
from multiprocessing.connection import wait

_THREAD_NAME = "exit-with-parent"


def exit_with_parent() -> bool:
    """Watches the parent from a thread and ends this process at once when it is gone; False where there is no such parent.

    An engine whose actor was killed would otherwise wait for requests for ever, holding its memory and its device.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return False
    if all(thread.name != _THREAD_NAME for thread in threading.enumerate()):
        threading.Thread(target=_exit_when_ready, args=(parent.sentinel,), name=_THREAD_NAME, daemon=True).start()
    return True


def leave_no_semaphore() -> None:
    """Progress bars of this process are guarded by a lock of its threads alone.

    tqdm takes a semaphore of the system by default, which in a spawned process has a name in /dev/shm: an engine that is ended from
    outside would leave one there at every start, for nothing else writes to its terminal.
    """
    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())


def _exit_when_ready(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
