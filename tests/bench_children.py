"""What test_bench.py and test_bench_growth.py run in processes of their own; imports next to nothing, so that they start at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from bench.growth_points import Meter, Reading

MIB = 2**20


def allocate(mebibytes: int) -> Callable[[], object]:
    """Holds some memory from the start, and in each step more for a moment."""
    held = b"x" * (32 * MIB)
    return lambda: len(held) + len(b"y" * (mebibytes * MIB))


def rank_seconds(number: int, seconds: list[float]) -> Callable[[], float]:
    """Each child says that it took other seconds."""
    return lambda: seconds[number]


def growing(_: int, mebibytes: int, told: Path) -> Callable[[], Reading]:
    """Says in a file that it had its turn, and takes so much memory for a moment."""
    meter = Meter()

    def step() -> Reading:
        with told.open("a") as file:
            file.write(f"{mebibytes}\n")
        with meter.of("a deed", 2.0):
            time.sleep(0.02)
            len(b"y" * (mebibytes * MIB))
        return meter.reading()

    return step
