"""Counts what a replica does. The event loop and the searching thread both report here."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping

import numpy as np

from retrieval_service.messages import Answer, ReplicaStats, SearchFailure

_KEPT = 4096  # enough for a p99 that forty batches stand above
_WINDOW_S = 60.0  # long enough to see through the pauses between a run's steps


class Meter:
    """Totals since the start, and the times of late. It outlives a change of index.

    Example:
        >>> meter = Meter()
        >>> meter.batch(8, 2.0); meter.answered([SearchFailure("no such collection")])
        >>> stats = meter.stats("hash")
        >>> stats.queries, stats.failed, stats.batch_size, stats.p50_ms
        (1, 1, 8.0, 2.0)
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._batch_ms: deque[float] = deque(maxlen=_KEPT)
        self._batch_sizes: deque[int] = deque(maxlen=_KEPT)
        self._queue_ms: deque[float] = deque(maxlen=_KEPT)
        self._answered: deque[tuple[float, int]] = deque(maxlen=_KEPT)
        self._started = time.monotonic()
        self._lock = threading.Lock()

    def answered(self, answers: list[Answer], shared: int = 0) -> None:
        with self._lock:
            self._answered.append((time.monotonic(), len(answers)))
            self._counts["queries"] += len(answers)
            self._counts["shared"] += shared
            for answer in answers:
                if isinstance(answer, SearchFailure):
                    self._counts["rejected" if answer.rejected else "failed"] += 1
                else:
                    self._counts["cached"] += answer.cached
                    self._counts["degraded"] += answer.degraded

    def batch(self, size: int, taken_ms: float) -> None:
        with self._lock:
            self._counts["batches"] += 1
            self._batch_sizes.append(size)
            self._batch_ms.append(taken_ms)

    def waited(self, taken_ms: float) -> None:
        with self._lock:
            self._queue_ms.append(taken_ms)

    def swapped(self) -> None:
        with self._lock:
            self._counts["swaps"] += 1

    def stats(
        self, index_hash: str, stages_ms: Mapping[str, float] | None = None, waiting: int = 0, refused: str = ""
    ) -> ReplicaStats:
        with self._lock:
            now = time.monotonic()
            since = max(now - _WINDOW_S, self._answered[0][0] if len(self._answered) == _KEPT else self._started)
            lately = sum(count for at, count in self._answered if at >= since)
            p50, p99 = _percentiles(self._batch_ms)
            queue_p50, queue_p99 = _percentiles(self._queue_ms)
            return ReplicaStats(
                pid=os.getpid(),
                index_hash=index_hash,
                **{name: self._counts[name] for name in _COUNTED},
                waiting=waiting,
                queries_per_s=lately / max(now - since, 1e-9),
                batch_size=float(np.mean(self._batch_sizes)) if self._batch_sizes else 0.0,
                queue_p50_ms=queue_p50,
                queue_p99_ms=queue_p99,
                p50_ms=p50,
                p99_ms=p99,
                stages_ms=dict(stages_ms or {}),
                refused=refused,
            )


_COUNTED = ("queries", "batches", "cached", "shared", "failed", "degraded", "rejected", "swaps")


def _percentiles(values: deque[float]) -> tuple[float, float]:
    if not values:
        return 0.0, 0.0
    p50, p99 = np.percentile(values, (50, 99)).tolist()
    return p50, p99
