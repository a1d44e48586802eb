"""Spool and store behind two threads, so that a run loop never waits for a disk."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa

from trajectories.spool import Spool, clear_superseded
from trajectories.store import TrajectoryStore


class Recorder:
    """Writes a run's rows down: a group as soon as it finishes, and again with its ending when a step is written.

    Each thread does one thing after the other: appending waits for no Parquet file, and a group's bytes leave the spool only
    when its rows are in the store. Every method returns at once; a failure is raised by its future, and by the next `step`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     recorder = Recorder(folder, generation=1)
        ...     path = recorder.step(1, [], ended=[]).result()
        ...     recorder.close()
        ...     path.name
        'step-000001-generation-1.parquet'
    """

    def __init__(self, folder: Path | str, generation: int) -> None:
        self._store = TrajectoryStore(folder)
        self._generation = generation
        self._spool = Spool(folder, generation)
        self._appending = ThreadPoolExecutor(1, "spool")
        self._storing = ThreadPoolExecutor(1, "store")
        self._asked: list[tuple[Future[Path], Future[None]]] = []  # steps whose end nobody has looked at: each, its tidying

    def finished(self, rows: pa.Table, note: bytes = b"") -> Future[None]:
        """A group's rows, and what to remember with them; once the future is done, a crash of this process does not lose them."""
        return self._appending.submit(self._spool.append, rows, note)

    def ended(self, group_ids: Sequence[str]) -> Future[None]:
        """Groups that were held back from `step`, because a resume could still have used them: no longer."""
        return self._appending.submit(self._spool.ended, list(group_ids))

    def forget_older(self) -> Future[None]:
        """A manifest of this generation is written: what earlier ones left in the spool is superseded."""
        return self._appending.submit(clear_superseded, self._spool.folder, self._generation)

    def step(self, step: int, groups: Sequence[pa.Table], ended: Sequence[str]) -> Future[Path]:
        """The rows of the groups that ended by this step; `ended` names those, with rows or without, that no resume can use."""
        self._raise_failure()
        written = self._storing.submit(self._store.write, step, self._generation, groups)
        self._asked.append((written, self._storing.submit(self._tidy, written, list(ended))))
        return written

    def sync(self) -> None:
        """Waits until every step, and every group in the spool, is on the disk; called before a manifest that refers to them."""
        for written, _ in self._asked:
            written.result()
        self._appending.submit(self._spool.sync).result()

    def close(self) -> None:
        """Ends after everything that was asked for."""
        self._storing.shutdown()
        self._appending.submit(self._spool.close)
        self._appending.shutdown()
        self._raise_failure()

    def _raise_failure(self) -> None:
        ended = [(written, tidied) for written, tidied in self._asked if tidied.done()]
        for _, tidied in ended:
            tidied.result()  # which also raises what the step's own file came to
        self._asked = self._asked[len(ended) :]  # one thread: they end in order

    def _tidy(self, written: Future[Path], ended: list[str]) -> None:
        written.result()
        self._appending.submit(self._spool.ended, ended).result()
        self._store.compact()
