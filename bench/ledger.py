"""How many groups a second can one run loop's ledger take through their lives, however many are open at a time?"""

from __future__ import annotations

import time
from collections import deque
from functools import partial

from bench.harness import Result, Spread, interleaved, rate, ratio, result
from trajectories.groups import Rules
from trajectories.ledger import Ledger
from trajectories.schema import WeightVersion

GROUPS_PER_S = 2_000  # a step of 256 groups every eighth of a second: far more than any learner trains
FLAT = 0.5  # of the smallest ledger's speed: what caches cost, but nothing that grows with the groups
OPEN = (1_024, 8_192, 65_536)  # with a staleness of 3: steps of 256, 2,048 and 16,384 groups
STALENESS = 3
STEPS = 6  # beyond the first fill
REPETITIONS = 3


def run() -> Result:
    """Whole lives of groups, and `take` alone, at 1k, 8k and 64k open groups."""
    lives = interleaved({str(slots): partial(lifetime, slots) for slots in OPEN}, REPETITIONS, warm_up=1)
    waits = interleaved({str(slots): partial(waiting_take, slots) for slots in OPEN}, REPETITIONS, warm_up=1)
    figures = [rate(f"{int(slots):,} open groups: whole lives", 1.0, each, "groups/s") for slots, each in lives.items()]
    figures += [
        rate(f"{int(slots):,} open groups: finish, and a take that has to wait", 1.0, each, "1/s")
        for slots, each in waits.items()
    ]
    slowest = min(1 / each.median for each in lives.values())
    return result(
        figures,
        [
            ratio("groups a second, over the goal", slowest / GROUPS_PER_S, 1.0),
            ratio("whole lives, most open groups over fewest", _flatness(lives), FLAT),
            ratio("take that has to wait, most open groups over fewest", _flatness(waits), FLAT),
        ],
        threads=1,
    )


def _flatness(seconds: dict[str, Spread]) -> float:
    return seconds[str(OPEN[0])].median / seconds[str(OPEN[-1])].median


def lifetime(slots: int) -> float:
    """CPU seconds for one group: admit, start, finish, take, trained, retire, its ending drained; asked for capacity each time."""
    size = slots // (STALENESS + 1)
    ledger, version = Ledger(Rules(groups_per_step=size, max_staleness=STALENESS)), WeightVersion(1, 0)
    admitted, inflight = 0, deque[tuple[str, WeightVersion]]()
    started = time.process_time()
    for step in range(1, STEPS + 1):
        while ledger.capacity():
            name = f"g{admitted:07d}"
            ledger.admit(name, "q", "p", 0.0)
            ledger.start(name, "e", version)
            inflight.append((name, version))
            admitted += 1
        while (batch := ledger.take(version)) is None:
            name, at = inflight.popleft()
            ledger.finish(name, 0, at, 0.0)
        ledger.trained(batch, step)
        ledger.drain_endings()
        ledger.retire(step)
        version = WeightVersion(1, step)
    return (time.process_time() - started) / (STEPS * size)


def waiting_take(slots: int) -> float:
    """CPU seconds for one finish and the take after it, while no batch is full: what the loop does at every arrival."""
    size = slots // (STALENESS + 1)
    ledger, version = Ledger(Rules(groups_per_step=size, max_staleness=STALENESS)), WeightVersion(1, 0)
    for number in range(slots):
        ledger.admit(f"g{number}", "q", "p", 0.0)
        ledger.start(f"g{number}", "e", version)
    arrivals = size - 1
    started = time.process_time()
    for number in range(arrivals):
        ledger.finish(f"g{number}", 0, version, 0.0)
        if ledger.take(version) is not None:
            raise RuntimeError("a batch was handed out before it was full")
    return (time.process_time() - started) / arrivals
