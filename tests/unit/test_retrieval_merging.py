"""What waits is worked on together: in order, within the bound, one batch at a time, and nobody is forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_service.merging import Merger


class Part(NamedTuple):
    number: int
    size: int


class Worker:
    """Answers every part by its number; fails where a batch begins with one that is to fail."""

    def __init__(self, failing: set[int]) -> None:
        self.batches: list[list[Part]] = []
        self.failing, self.at_work = failing, 0

    async def work(self, parts: Sequence[Part]) -> list[int]:
        self.at_work += 1
        assert self.at_work == 1
        self.batches.append(list(parts))
        await asyncio.sleep(0)
        self.at_work -= 1
        if parts[0].number in self.failing:
            raise ValueError(f"failed from {parts[0].number}")
        return [part.number for part in parts]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(0, 3)), min_size=1, max_size=25),
    st.integers(1, 8),
    st.sets(st.integers(0, 24), max_size=4),
    st.sets(st.integers(0, 24), max_size=4),
)
def test_every_part_is_answered_once_in_order_and_within_the_bound(
    coming: list[tuple[int, int]], most: int, failing: set[int], given_up: set[int]
) -> None:
    worker = Worker(failing)

    async def scenario() -> list[int | BaseException]:
        merger: Merger[Part, int] = Merger(worker.work, most)
        asked = []
        for number, (size, turns) in enumerate(coming):
            asked.append(asyncio.create_task(merger.submit(Part(number, size))))
            for _ in range(turns):
                await asyncio.sleep(0)
            if number in given_up:
                asked[-1].cancel()
        return await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 5)

    outcomes = asyncio.run(scenario())
    done = [part.number for batch in worker.batches for part in batch]
    assert (
        done == sorted(done) and set(range(len(coming))) - set(done) <= given_up
    )  # who gave up before the first turn never asked
    for batch in worker.batches:
        assert len(batch) == 1 or sum(part.size for part in batch) <= most
        for part in batch:
            outcome = outcomes[part.number]
            if isinstance(outcome, asyncio.CancelledError):
                assert part.number in given_up
            elif batch[0].number in failing:
                assert str(outcome) == f"failed from {batch[0].number}"
            else:
                assert outcome == part.number
