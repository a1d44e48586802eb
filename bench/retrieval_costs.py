"""Where a search over HTTP spends its time: the processor seconds of every process that takes part, and what the replica counts."""

from __future__ import annotations

import json
import os
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.harness import Result, figure
from bench.processor_time import by_process

# By what stands in their command lines: Ray's actors write their names there.
_ROLES = {":Replica": "replica", ":Gateway": "gateway", "spawn_main": "plain server"}


class Costs:
    """Processor seconds by role, over all rounds that were counted.

    Example:
        >>> costs = Costs("plain server")
        >>> with costs.counted(queries=1):
        ...     _ = sum(range(3_000_000))
        >>> [each["name"] for each in costs.figures()]
        ['processor time a query, plain server: clients']
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._queries = 0

    @contextmanager
    def counted(self, queries: int) -> Iterator[None]:
        """What everything below this process uses meanwhile."""
        before = by_process(os.getpid())
        yield
        for pid, seconds in by_process(os.getpid()).items():
            if (used := seconds - before.get(pid, 0.0)) > 0:
                self._seconds[_role(pid)] += used
        self._queries += queries

    def figures(self) -> list[Result]:
        """Milliseconds a query, the most expensive role first."""
        return [
            figure(f"processor time a query, {self._name}: {role}", 1e3 * seconds / self._queries, "ms")
            for role, seconds in sorted(self._seconds.items(), key=lambda each: -each[1])
        ]


def _role(pid: int) -> str:
    if pid == os.getpid():
        return "clients"
    try:
        called = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return "ended"
    return next((role for part, role in _ROLES.items() if part in called), "Ray itself")


def batches(port: int) -> list[Result]:
    """What the replica says of its batches of late, where all of them were of the dense half."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/stats", timeout=60) as answer:
        told: list[dict[str, Any]] = json.load(answer)
    (replica,) = told
    stages = {f"batch: {stage}": replica["stages_ms"][stage] for stage in ("encode", "dense", "fetch")}
    return [
        figure("queries searched together", replica["batch_size"], "queries"),
        figure("batch: waited for", replica["queue_p50_ms"], "ms"),
        figure("batch: searched", replica["p50_ms"], "ms"),
        *(figure(name, milliseconds, "ms") for name, milliseconds in stages.items()),
    ]
