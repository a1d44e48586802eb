"""What is said of a run between two steps: the feed's failures by cause, engines without work, and names that are all registered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from actors.failures import EngineLost
from actors.health import EngineState
from actors.messages import GroupRequest, GroupVoided
from actors.signals import PoolSignals
from medr3.observe.registry import lookup
from medr3.run.measuring import around_step, run_clock, tell
from tests.unit.test_run_feed import Answer, ScriptedPool, feeding, until


class WatchedPool(ScriptedPool):
    def signals(self) -> PoolSignals:
        return PoolSignals(2, 1, 0, 0, groups_running=3, groups_waiting=1, room=4, kv_use=0.25, restarts=1)

    def states(self) -> Mapping[str, str]:
        return {"engine-0.1": EngineState.HEALTHY.value, "engine-1.0": EngineState.HEALTHY.value, "engine-2.0": "joining"}


def script(request: GroupRequest) -> Answer:
    """The first attempts fail, each of the first groups for a reason of its own."""
    failures: dict[str, Exception] = {
        "g0000001": GroupVoided("retrieval failed", "retrieval_timeout"),
        "g0000002": EngineLost("engine lost: engine-0.0"),
        "g0000003": GroupVoided("what nobody has foreseen"),
    }
    return failures[request.group_id] if request.attempt == 0 and request.group_id in failures else [1.0, 0.0]


def test_what_a_moment_holds(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with feeding(tmp_path, WatchedPool(script)) as (_, state):
            await until(lambda: state.ledger.states().get("finished") == 4)
            groups = list(state.finished.values())
            told = around_step(state, groups, 2.0) | run_clock(state, training=True)
            for name in told:
                lookup(name)
            assert {name: told[f"groups/failed/{name}"] for name in ("retrieval_timeout", "engine_lost", "other", "tool")} == {
                "retrieval_timeout": 1, "engine_lost": 1, "other": 1, "tool": 0,
            }  # fmt: skip
            assert (told["groups/admitted"], told["groups/requeued"], told["groups/open/finished"]) == (4, 3, 4)
            assert (told["groups/open/waiting"], told["groups/dropped/stale"]) == (0, 0), (
                "what did not happen is 0 and not absent"
            )
            assert [told[f"pool/engines/{name}"] for name in ("healthy", "joining", "dead")] == [2, 1, 0]
            assert (told["pool/restarts"], told["rollout/kv_use"], told["run/checkpoint_step"]) == (1, 0.25, -1)
            assert 0 < told["time/engines_idle"] < 5, "the last group is through, and nobody asked for more"
            assert told["time/step"] == 2.0 and abs(told["run/step_time"] - time.time()) < 5

    asyncio.run(scenario())


def test_telling_goes_on_until_it_is_ended_and_begins_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[dict[str, float]] = []
    monkeypatch.setattr("medr3.run.measuring.TELL_S", 0.01)

    async def scenario() -> None:
        async with feeding(tmp_path, WatchedPool(script)) as (_, state):
            monkeypatch.setattr(state.journal.tracker, "now", lambda phase, metrics: said.append({"phase": phase, **metrics}))
            state.journal.accounts.step_time = 0.0  # as if hours had gone into the cold start
            telling = asyncio.create_task(tell(state))
            await until(lambda: len(said) >= 3)
            telling.cancel()

    asyncio.run(scenario())
    assert {row["phase"] for row in said} == {"reasoning"}
    assert all(row["run/training"] == 1 and time.time() - row["run/step_time"] < 60 for row in said)
