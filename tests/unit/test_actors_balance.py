"""Which engine gets a group, how many it may have in hand, which one goes first, and leases that stand still."""

from __future__ import annotations

import asyncio
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.balancing import AFFINITY_GROUPS, Candidate, Employed, TokenEstimate, choose, first_to_go
from actors.config import EngineConfig
from actors.flow import CEILING, KV_FULL, KV_GROW, GroupWindow
from actors.health import EngineState
from actors.lease import Leases
from actors.member import _resources

candidates = st.lists(st.builds(Candidate, tokens=st.floats(0, 1e6), cached=st.booleans()), min_size=1, max_size=8)


@given(candidates, st.floats(1, 1e5))
def test_no_cache_is_worth_more_than_one_groups_tokens(free: list[Candidate], group_tokens: float) -> None:
    chosen = free[choose(free, group_tokens)]
    least = min(candidate.tokens for candidate in free)
    assert chosen.tokens <= least + AFFINITY_GROUPS * group_tokens
    if not chosen.cached:
        assert chosen.tokens == least
        assert not any(other.cached and other.tokens <= least + AFFINITY_GROUPS * group_tokens for other in free)
    else:
        assert all(chosen.tokens <= other.tokens for other in free if other.cached)


def test_groups_spread_by_tokens_and_not_by_number() -> None:
    """An engine with one huge group gets nothing while another has several small ones."""
    tokens = [0.0, 0.0]
    for size in (1000.0, 100.0, 100.0, 100.0):
        tokens[choose([Candidate(each, False) for each in tokens], size)] += size
    assert tokens == [1000.0, 300.0]


@given(st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 16)), min_size=1, max_size=40))
def test_the_running_mean_stays_within_what_was_seen(seen: list[tuple[int, int]]) -> None:
    estimate = TokenEstimate()
    assert estimate.of(8) > 0  # the first groups must spread as well
    for per_episode, episodes in seen:
        estimate.observe(per_episode * episodes, episodes)
    means = [per_episode for per_episode, _ in seen]
    assert min(means) - 1e-6 <= estimate.of(1) <= max(means) + 1e-6


employable = st.sampled_from([EngineState.JOINING, EngineState.STALE, EngineState.SUSPECT, EngineState.HEALTHY])


@given(st.lists(st.tuples(employable, st.floats(0, 1e6)), max_size=8), st.integers(-2, 10))
def test_those_go_first_that_lose_least(drawn: list[tuple[EngineState, float]], count: int) -> None:
    engines = [Employed(slot, state, tokens) for slot, (state, tokens) in enumerate(drawn)]
    going = first_to_go(engines, count)
    assert len(going) == len(set(going)) == min(max(0, count), len(engines))
    staying = [engine for engine in engines if engine.slot not in going]
    for slot in going:
        if engines[slot].state is EngineState.HEALTHY:
            assert all(other.state is EngineState.HEALTHY and other.tokens >= engines[slot].tokens for other in staying)
    if any(engine.state is EngineState.JOINING for engine in staying):
        assert all(engines[slot].state is EngineState.JOINING for slot in going)


events = st.lists(
    st.one_of(
        st.just("begin"),
        st.tuples(st.floats(0, 1), st.integers(0, 3)),  # a group ends: memory use, further preemptions
        st.just("void"),
    ),
    max_size=120,
)


@given(st.integers(0, 40), events)
def test_a_window_grows_by_one_and_halves_once_per_generation(
    start: int, drawn: list[Literal["begin", "void"] | tuple[float, int]]
) -> None:
    window, preemptions, began_before = GroupWindow(start), 0, 0
    for event in drawn:
        size, in_hand = window.size, window.in_hand
        if event == "begin":
            if window.room:
                window.begin()
            continue
        if not in_hand:
            continue
        if isinstance(event, str):
            window.end()
            assert window.size == size  # a lost group says nothing about memory
        else:
            kv_use, more = event
            preemptions += more
            window.end(kv_use, preemptions)
            pressed = more > 0 or kv_use >= KV_FULL
            if window.size < size:
                assert pressed
                assert not began_before, "the groups of one generation halve a window once"
                assert window.size == max(1, size // 2)
                began_before = in_hand  # those in hand, this one included
            elif window.size > size:
                assert window.size == size + 1
                assert not pressed and kv_use < KV_GROW and in_hand >= size
        began_before = max(0, began_before - 1)
        assert 1 <= window.size <= CEILING * max(1, start)
        assert window.in_hand == in_hand - 1


def test_a_window_recovers_after_pressure_and_finds_the_bound_again() -> None:
    window = GroupWindow(start=8)

    def generation(fits: int) -> None:
        """Fills the window and ends all of it; more than `fits` groups push each other out."""
        nonlocal preemptions
        while window.room:
            window.begin()
        preemptions += max(0, window.in_hand - fits)
        for _ in range(window.in_hand):
            window.end(min(1.0, window.in_hand / fits), preemptions)

    preemptions = 0
    sizes = []
    for _ in range(40):
        generation(fits=5)
        sizes.append(window.size)
    assert max(sizes[5:]) <= 5 + 1  # it probes one above what fits, no more
    assert min(sizes[5:]) >= 2
    for _ in range(40):
        generation(fits=100)
    assert window.size == 16


def test_leases_stand_still_while_the_engines_sleep() -> None:
    async def story() -> None:
        leases = Leases()

        async def hold(seconds: float, lease_s: float) -> str:
            try:
                async with leases.lease(lease_s):
                    await asyncio.sleep(seconds)
            except TimeoutError:
                return "over"
            return "kept"

        before = asyncio.create_task(hold(0.25, 0.15))
        await asyncio.sleep(0.02)
        leases.stop_clock()
        leases.stop_clock()
        during = asyncio.create_task(hold(0.25, 0.15))
        await asyncio.sleep(0.2)
        assert not before.done() and not during.done()
        leases.go_on()
        leases.go_on()
        endless = asyncio.create_task(hold(5, 0.05))
        assert await before == await during == "kept"
        assert await endless == "over"

    asyncio.run(story())


def test_a_lease_that_ran_out_is_no_obstacle_to_the_clock() -> None:
    async def story() -> None:
        leases = Leases()

        async def slow_to_let_go() -> None:
            async with leases.lease(0.01):
                try:
                    await asyncio.sleep(1)
                finally:
                    await asyncio.sleep(0.05)

        task = asyncio.create_task(slow_to_let_go())
        await asyncio.sleep(0.03)
        leases.stop_clock()
        leases.go_on()
        with pytest.raises(TimeoutError):
            await task

    asyncio.run(story())


def test_an_engine_reserves_what_all_of_its_workers_need() -> None:
    assert _resources(EngineConfig(cpu_threads=3, tensor_parallel_size=2)) == {"num_cpus": 6, "num_gpus": 0, "resources": {}}
    on_gpus = EngineConfig(gpus=1, tensor_parallel_size=4, resources={"rollout": 1})
    assert _resources(on_gpus) == {"num_cpus": 1, "num_gpus": 4, "resources": {"rollout": 1}}
    logical = EngineConfig(gpus=1, device="cpu", cpu_threads=1)
    assert logical.on_cpu
    assert _resources(logical) == {"num_cpus": 1, "num_gpus": 1, "resources": {}}
    assert not on_gpus.on_cpu


def test_workers_of_one_engine_cannot_share_gpus() -> None:
    with pytest.raises(ValueError, match=r"gpus is 0\.5 and tensor_parallel_size is 2.*set gpus to 1"):
        EngineConfig(gpus=0.5, tensor_parallel_size=2)
