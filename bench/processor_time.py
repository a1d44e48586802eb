"""Processor time of a process with everything below it, and of the whole machine, as Linux counts it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

_TICK = 1 / os.sysconf("SC_CLK_TCK")
_PARENT, _USER, _SYSTEM, _CHILDREN_USER, _CHILDREN_SYSTEM = 1, 11, 12, 13, 14  # fields of /proc/*/stat after the name


class ProcessorTime(NamedTuple):
    """Seconds since some start; differences of two of them mean something."""

    tree: float  # the process and all below it, the ended ones included
    busy: float  # the machine, whoever used it
    total: float  # busy and idle

    def __sub__(self, before: ProcessorTime) -> ProcessorTime:
        return ProcessorTime(*(now - then for now, then in zip(self, before, strict=True)))

    @property
    def idle_share(self) -> float:
        """Of the time that other programs left to the tree, the share that it did not use.

        Example: two cores, ten seconds; other programs took 4 s, the tree 12, nobody the rest.
            >>> ProcessorTime(tree=12, busy=16, total=20).idle_share
            0.25
        """
        left = self.total - (self.busy - self.tree)
        return 1 - self.tree / left


def processor_time(pid: int) -> ProcessorTime:
    """Of this moment."""
    user, nice, system, idle, waiting, *rest = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9])
    busy = user + nice + system + sum(rest)
    return ProcessorTime(sum(by_process(pid).values()), busy * _TICK, (busy + idle + waiting) * _TICK)


def by_process(pid: int) -> dict[int, float]:
    """Seconds of a process and of each one below it; the ended ones count with their parents.

    Who has lost its parent belongs to the machine's first process; nothing here lets that happen.
    """
    children: dict[int, list[int]] = {}
    used: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended, and its parent counts it
        number = int(path.parent.name)
        children.setdefault(int(fields[_PARENT]), []).append(number)
        used[number] = sum(int(fields[at]) for at in (_USER, _SYSTEM, _CHILDREN_USER, _CHILDREN_SYSTEM))
    found, waiting = dict[int, float](), [pid]
    while waiting:
        number = waiting.pop()
        found[number] = used.get(number, 0) * _TICK
        waiting += children.get(number, [])
    return found
