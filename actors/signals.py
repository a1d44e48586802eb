"""What a pool says of itself to whoever watches or scales it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PoolSignals:
    """One moment of a pool. Engines by state, groups, and how full the engines' memory is."""

    healthy: int
    joining: int  # their process starts, or they prove the newest weights for the first time
    draining: int
    suspect: int
    groups_running: int
    groups_waiting: int  # callers that have no engine yet
    room: int  # groups that HEALTHY engines may still take
    kv_use: float  # mean over HEALTHY engines, 0 to 1, as the last finished group of each saw it
    restarts: int = 0  # engines that were started in the place of one that failed
