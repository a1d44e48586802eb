"""Runs the two halves of a hybrid search at the same time, and measures the stages of a search."""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

_log = logging.getLogger(__name__)

_KEPT = 4096  # enough for a p99 that forty batches stand above


class HalfLost(NamedTuple):
    """One half raised, and the search went on without it."""

    name: str
    error: Exception


class Stages:
    """How long the stages of the last few thousand batches took, in milliseconds. Threads may measure at the same time.

    Example:
        >>> stages = Stages()
        >>> with stages.timing("encode"):
        ...     pass
        >>> sorted(stages.medians())
        ['encode']
    """

    def __init__(self) -> None:
        self._ms: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_KEPT))
        self._lock = threading.Lock()

    @contextmanager
    def timing(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            taken = (time.perf_counter() - started) * 1e3
            with self._lock:
                self._ms[stage].append(taken)

    def medians(self) -> Mapping[str, float]:
        with self._lock:
            return {stage: float(np.median(values)) for stage, values in self._ms.items()}


class Halves:
    """Two threads' worth of search: FAISS and most of numpy release the interpreter's lock while they compute.

    Example:
        >>> found = []
        >>> Halves().run(lambda: found.append("d"), lambda: found.append("l")), sorted(found)
        (None, ['d', 'l'])
        >>> Halves().run(lambda: [].pop(), lambda: None).name
        'dense'
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="dense-half")

    def run(self, dense: Callable[[], None] | None, lexical: Callable[[], None] | None) -> HalfLost | None:
        """Ends when both have; the half that was lost, if one was. Where nothing is left, the error of what failed is raised."""
        if dense is None or lexical is None:  # one thread is enough, and keeps lone queries quick
            for half in (dense, lexical):
                if half is not None:
                    half()
            return None
        running = self._thread.submit(dense)
        words_failed, vectors_failed = _failure(lexical), _failure(running.result)
        if words_failed is not None and vectors_failed is not None:
            raise vectors_failed
        if (failed := vectors_failed or words_failed) is None:
            return None
        lost = HalfLost("dense" if vectors_failed else "lexical", failed)
        _log.warning("the %s half failed, answers are degraded: %s: %s", lost.name, type(failed).__name__, failed)
        return lost


def _failure(function: Callable[[], object]) -> Exception | None:
    try:
        function()
    except Exception as error:
        return error
    return None
