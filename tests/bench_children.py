"""What test_bench.py runs in processes of their own; imports nothing, so that they start at once."""

from __future__ import annotations

from collections.abc import Callable

MIB = 2**20


def allocate(mebibytes: int) -> Callable[[], object]:
    """Holds some memory from the start, and in each step more for a moment."""
    held = b"x" * (32 * MIB)
    return lambda: len(held) + len(b"y" * (mebibytes * MIB))


def rank_seconds(number: int, seconds: list[float]) -> Callable[[], float]:
    """Each child says that it took other seconds."""
    return lambda: seconds[number]
