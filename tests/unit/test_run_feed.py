"""The feed against a pool that follows a script: what becomes of groups that are lost, uniform, or no longer wanted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from ray.exceptions import OwnerDiedError

from actors.failures import EngineDrained
from actors.messages import GroupRequest, GroupSummary, GroupVoided
from curriculum.controller import Controller
from medr3.config import load
from medr3.observe.config import TrackingConfig
from medr3.observe.tracker import Tracker
from medr3.run.feed import Feed
from medr3.run.journal import Journal
from medr3.run.progress import Progress
from medr3.run.sampler import QuestionSampler
from medr3.run.state import RunState
from medr3.run.watchdog import Watchdog
from tasks.config import WorldConfig
from tasks.world import Universe
from trajectories.events import EventKind, EventLog, read_events
from trajectories.ledger import Ledger
from trajectories.recorder import Recorder
from trajectories.schema import WeightVersion, to_table

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"
UNIVERSE = Universe.build(WorldConfig(training_worlds=1))
V = WeightVersion(1, 0)

Answer = list[float] | Exception


@dataclass
class ScriptedPool:
    """`script` says what an attempt at a group comes to: rewards, an error, or None for one that never answers."""

    script: Callable[[GroupRequest], Answer | None]
    cancelled: list[str] = field(default_factory=list)
    lose_rows_of: str = ""

    async def run_group(self, request: GroupRequest, on_start: Callable[[str], None]) -> tuple[GroupSummary, Any]:
        await asyncio.sleep(0)
        on_start("engine-0.0")
        answer = self.script(request)
        try:
            await asyncio.sleep(3600 if answer is None else 0)
        except asyncio.CancelledError:
            self.cancelled.append(request.group_id)
            raise
        if isinstance(answer, Exception):
            raise answer
        assert answer is not None
        summary = GroupSummary(request.group_id, request.attempt, "engine-0.0", V, V, answer, [r > 0 for r in answer])
        return summary, self._rows(request)

    async def _rows(self, request: GroupRequest) -> pa.Table:
        if self.lose_rows_of == request.group_id and request.attempt == 0:
            raise OwnerDiedError("00" * 28, b"", "")
        return to_table([])


@asynccontextmanager
async def feeding(folder: Path, pool: ScriptedPool, *overrides: str) -> AsyncIterator[tuple[Feed, RunState]]:
    config = load(DEMO, ["rollout.groups_per_step=4", "rollout.group_size=2", *overrides])
    tracker = Tracker(folder, TrackingConfig(wandb="disabled", progress=False))
    journal = Journal(folder, EventLog(folder / "events.jsonl"), tracker, Recorder(folder / "trajectories", generation=1))
    state: Any = RunState(
        config=config, universe=UNIVERSE, index_hash="", pool=pool, learner=None, journal=journal,  # type: ignore[arg-type]
        ledger=Ledger(config.ledger_rules()), sampler=QuestionSampler(UNIVERSE, 0), controller=Controller(config.curriculum),
        progress=Progress(), watchdog=Watchdog(60), version=V, publication=None,  # type: ignore[arg-type]
    )  # fmt: skip
    feed = Feed(state)
    running = asyncio.create_task(feed.run())
    try:
        yield feed, state
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        journal.events.close()
        tracker.close()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def kinds(folder: Path) -> list[EventKind]:
    return [event.kind for event in read_events(folder / "events.jsonl").events]


def test_surplus_groups_are_stopped_and_accounted_for(tmp_path: Path) -> None:
    async def scenario() -> None:
        pool = ScriptedPool(lambda request: None if request.group_id == "g0000002" else [1.0, 0.0])
        async with feeding(tmp_path, pool, "rollout.oversample=1.5") as (feed, state):
            await until(lambda: state.ledger.states().get("finished") == 5)
            batch = state.ledger.take(V)
            assert batch is not None and "g0000002" not in batch
            feed.give_up(state.ledger.surplus(), "surplus")
            await until(lambda: pool.cancelled == ["g0000002"])
            state.journal.endings(state.ledger, state.finished, V)
            assert state.ledger.counts().reasons == {"surplus": 2}
            assert state.finished.keys() == set(batch)

    asyncio.run(scenario())
    assert kinds(tmp_path).count(EventKind.DROPPED) == 2


def test_uniform_groups_are_replaced_until_the_bound_and_then_trained(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with feeding(tmp_path, ScriptedPool(lambda _: [1.0, 1.0]), "rollout.dynamic_sampling=2") as (_, state):
            await until(lambda: state.ledger.states().get("finished") == 4)
            assert state.ledger.counts().reasons == {"uniform": 4}
            assert state.ledger.take(V) is not None
            assert len(state.finished) == 4, "the rows of dropped groups are on their way to the store"

    asyncio.run(scenario())


@pytest.mark.parametrize("rows_lost", [True, False])
def test_a_lost_attempt_is_repeated_under_a_new_number(tmp_path: Path, rows_lost: bool) -> None:
    def script(request: GroupRequest) -> Answer:
        failed = not rows_lost and (request.group_id, request.attempt) == ("g0000001", 0)
        return GroupVoided("engine lost") if failed else [1.0, 0.0]

    async def scenario() -> None:
        pool = ScriptedPool(script, lose_rows_of="g0000001" if rows_lost else "")
        async with feeding(tmp_path, pool) as (_, state):
            await until(lambda: state.ledger.states().get("finished") == 4)
            assert state.finished["g0000001"].summary.attempt == 1
            assert state.ledger.counts().requeued == 1

    asyncio.run(scenario())
    assert EventKind.REQUEUED in kinds(tmp_path)


def test_engines_that_are_drained_use_up_no_attempts(tmp_path: Path) -> None:
    async def scenario() -> None:
        pool = ScriptedPool(lambda request: EngineDrained("drained") if request.attempt < 9 else [1.0, 0.0])
        async with feeding(tmp_path, pool) as (_, state):
            await until(lambda: state.ledger.states().get("finished") == 4)
            assert state.ledger.counts().requeued == 36

    asyncio.run(scenario())


def test_a_group_that_always_fails_is_voided_and_its_slot_is_used_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        pool = ScriptedPool(lambda request: GroupVoided("no") if request.group_id == "g0000001" else [1.0, 0.0])
        async with feeding(tmp_path, pool) as (_, state):
            await until(lambda: state.ledger.states().get("finished") == 4)
            assert state.ledger.counts().voided == 1
            assert "g0000005" in state.finished

    asyncio.run(scenario())


def test_results_reach_the_sampler_and_the_phase_s_ladder_the_engines(tmp_path: Path) -> None:
    requests: list[GroupRequest] = []

    def script(request: GroupRequest) -> Answer:
        requests.append(request)
        return [1.0, 0.0]

    phase = "curriculum.phases.reasoning"
    settings = (f"{phase}.sampling={{order: learnability, pool: 8}}", f"{phase}.temperatures=[0.4, 1.0]")

    async def scenario() -> None:
        async with feeding(tmp_path, ScriptedPool(script), *settings) as (_, state):
            await until(lambda: state.ledger.states().get("finished") == 4)
            assert state.sampler.bands("reasoning") == {"unseen": 4, "middle": 4, "retired": 0}

    asyncio.run(scenario())
    assert {request.temperatures for request in requests} == {(0.4, 1.0)}
