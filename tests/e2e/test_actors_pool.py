"""The pool with real engines in real Ray actors: groups come back as valid rows, and an engine that is killed is replaced."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from actors.config import EngineConfig, EpisodeBudget, RolloutConfig
from actors.failures import EngineDrained, PoolDied
from actors.messages import GroupRequest, GroupVoided
from actors.pool import RolloutPool
from actors.rollout import RolloutActor
from actors.signals import PoolSignals
from retrieval_service.config import RetrievalConfig
from rewards.config import RewardRecipe, RewardTerm
from tasks.questions import Question
from tests.e2e.actors_tiny_model import build_model, publish, save_model
from trajectories.publication import Publication, WeightAck
from trajectories.schema import EPISODE_SCHEMA, WeightVersion, check

pytestmark = pytest.mark.e2e

QUESTION = Question(id="q1", text="what dose lomab 7 kg ?", kind="number", gold="7", lower=7, upper=7)
CONFIG = RolloutConfig(
    engine=EngineConfig(cpu_threads=1, kv_cache_mib=64, max_model_len=256, max_num_seqs=32), group_size=4, max_engine_restarts=1
)


def group(name: str, n: int = 4, tokens: int = 32) -> GroupRequest:
    budget = EpisodeBudget(retrieval=False, max_turn_tokens=tokens, max_response_tokens=tokens)
    recipe = RewardRecipe(terms=[RewardTerm(name="correct")])
    return GroupRequest("run", name, 0, "reasoning", QUESTION, n, 1.0, 7, budget, recipe)


async def until(reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(120):
        while not reached():  # noqa: ASYNC110 - the pool announces its states to nobody
            await asyncio.sleep(0.05)


def test_groups_updates_a_killed_engine_and_its_replacement(ray_session: None, tmp_path: Path) -> None:
    model_dir = save_model(tmp_path / "model")
    publications = [publish(build_model(number), tmp_path, number) for number in range(3)]

    async def story() -> None:
        pool = RolloutPool(CONFIG.model_copy(), None, RetrievalConfig())
        await pool.start(model_dir, publications[0])
        assert pool.states() == {"engine-0.0": "healthy"}

        summary, table_ref = await pool.run_group(group("g0"))
        table = await table_ref
        assert table.schema.equals(EPISODE_SCHEMA)
        assert table.num_rows == 4
        assert all(check(row) == [] for row in table.to_pylist())
        assert len(summary.rewards) == 4
        assert summary.oldest == summary.newest == WeightVersion(1, 0)
        assert summary.model_tokens == sum(map(sum, table["loss_mask"].to_pylist())) > 0
        assert sum(summary.finishes.values()) == 4
        assert set(summary.components) == {"correct"}

        acks = await pool.update(publications[1])
        assert [ack.ok for ack in acks] == [True]
        assert (await pool.run_group(group("g1")))[0].oldest == WeightVersion(1, 1)

        long_question = QUESTION.model_copy(update={"text": "what dose " * 200})
        with pytest.raises(GroupVoided, match="prompt of"):
            await pool.run_group(replace(group("long"), question=long_question))

        pool._config.group_timeout_s = 0.05
        with pytest.raises(GroupVoided, match="lease over"):
            await pool.run_group(group("slow", n=32, tokens=200))
        assert pool.states() == {"engine-0.0": "suspect"}
        pool._config.group_timeout_s = 60
        await until(lambda: pool.states() == {"engine-0.0": "healthy"})  # it answered, and proved its weights again

        actor_pid = (await pool._roster.members[0].ping())["pid"]
        engine_processes = psutil.Process(actor_pid).children(recursive=True)
        assert engine_processes
        waiting = [asyncio.create_task(pool.run_group(group(f"lost-{i}", n=32, tokens=200))) for i in range(8)]
        await asyncio.sleep(0.1)
        os.kill(actor_pid, signal.SIGKILL)
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(outcome, GroupVoided) and "engine lost" in str(outcome) for outcome in outcomes), outcomes
        _, alive = psutil.wait_procs(engine_processes, timeout=10)
        assert not alive, "the engine's processes outlived their actor"

        assert "healthy" not in pool.states().values()
        blocked = asyncio.create_task(pool.run_group(group("after")))  # waits for the replacement
        await pool.update(publications[2])  # and so does the update: the newest weights, and none else
        await until(lambda: pool.states() == {"engine-0.1": "healthy"})
        summary, _ = await blocked
        assert summary.oldest == WeightVersion(1, 2)
        assert summary.engine_id == "engine-0.1"

        last = asyncio.create_task(pool.run_group(group("last", tokens=200)))
        await asyncio.sleep(0.05)
        await pool.scale(0)
        assert (await last)[0].group_id == "last"  # what it had in flight was finished
        await until(lambda: pool.states() == {})
        with pytest.raises(PoolDied):
            await pool.run_group(group("too late"))
        await pool.stop()

    asyncio.run(story())


def test_weights_that_every_engine_refuses_end_the_run(ray_session: None, tmp_path: Path) -> None:
    model_dir = save_model(tmp_path / "model")
    good, other = (publish(build_model(number), tmp_path, number) for number in range(2))
    acks: list[WeightAck] = []

    async def story() -> None:
        pool = RolloutPool(CONFIG.model_copy(update={"max_engine_restarts": 0}), None, RetrievalConfig(), on_ack=acks.append)
        await pool.start(model_dir, good)
        with pytest.raises(PoolDied, match=r"refused 1\.1"):
            await pool.update(Publication(other.version, other.path, "0" * 32, other.nbytes, other.canary))
        assert [ack.ok for ack in acks] == [True, False, False]  # a refusal is tried once more
        assert set(pool.states().values()) == {"dead"}
        await pool.stop()

    asyncio.run(story())


def forgetful_actor() -> type[RolloutActor]:
    """Made in a function, so that it travels by value: the workers cannot import this module."""

    class Forgetful(RolloutActor):
        """The second engine acks version 1.2 without loading anything; all else it does as it should."""

        async def update(self, publication: Publication) -> WeightAck:
            assert self._engine is not None
            if self._engine.engine_id.startswith("engine-1.") and publication.version.number == 2:
                return WeightAck(self._engine.engine_id, publication.version, True, publication.checksum, 0.0)
            return await super().update(publication)

    return Forgetful


def test_two_engines_sleep_share_out_lie_and_are_drained(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_dir = save_model(tmp_path / "model")
    publications = [publish(build_model(number), tmp_path, number) for number in range(3)]
    monkeypatch.setattr("actors.member.RolloutActor", forgetful_actor())
    config = CONFIG.model_copy(update={"num_engines": 2, "max_engine_restarts": 0, "colocated": True})

    async def story() -> None:
        pool = RolloutPool(config, None, RetrievalConfig())
        await pool.start(model_dir, publications[0])
        start = 2 * config.engine.max_num_seqs // config.group_size
        assert pool.signals() == PoolSignals(2, 0, 0, 0, groups_running=0, groups_waiting=0, room=2 * start, kv_use=0.0)
        served = {(await pool.run_group(group(f"again-{i}")))[0].engine_id for i in range(3)}
        assert len(served) == 1, "one engine has the prompt in its cache, and both are idle"

        running = [asyncio.create_task(pool.run_group(group(f"night-{i}", n=16, tokens=200))) for i in range(8)]
        await asyncio.sleep(0.01)
        assert pool.signals().groups_running == 8
        await pool.sleep()
        night = await pool.activity()
        assert 120 <= night["generating"] <= 128, "of 128 episodes a few may draw their end before the pool sleeps"
        assert night == {"generating": night["generating"], "searching": 0, "scoring": 0, "silent": 0}
        assert [lease.when() for lease in pool._leases._left] == [None] * 8, "the learner's time is not the groups'"
        asked_at_night = asyncio.create_task(pool.run_group(group("at-night")))
        await asyncio.sleep(0.3)
        assert not asked_at_night.done() and not any(task.done() for task in running)
        assert await pool.activity() == night, "nothing moves while the pool sleeps"
        assert pool.signals().groups_waiting == 1
        await pool.wake()
        assert all(ack.ok for ack in await pool.update(publications[1]))
        summaries = [summary for summary, _ in await asyncio.gather(*running)]
        assert {summary.engine_id for summary in summaries} == {"engine-0.0", "engine-1.0"}
        assert {summary.newest for summary in summaries} == {WeightVersion(1, 1)}
        assert (await asked_at_night)[0].oldest == WeightVersion(1, 1)

        assert all(ack.ok for ack in await pool.update(publications[2]))  # the lie
        questions = [QUESTION.model_copy(update={"id": f"q{i}"}) for i in range(4)]
        outcomes = await asyncio.gather(
            *(pool.run_group(replace(group(f"lie-{i}"), question=q)) for i, q in enumerate(questions)), return_exceptions=True
        )
        voided = [outcome for outcome in outcomes if isinstance(outcome, GroupVoided)]
        assert any("under 1.1 although it had acked 1.2" in str(reason) for reason in voided), outcomes
        honest = [outcome[0] for outcome in outcomes if not isinstance(outcome, BaseException)]
        assert {(summary.engine_id, str(summary.oldest)) for summary in honest} == {("engine-0.0", "1.2")}
        assert pool.states() == {"engine-0.0": "healthy", "engine-1.0": "dead"}

        with pytest.raises(ValueError, match=r"no engine 'engine-9'; there are engine-0\.0, engine-1\.0"):
            await pool.drain("engine-9", 1)
        unfinished = [asyncio.create_task(pool.run_group(group(f"unfinished-{i}", n=32, tokens=200))) for i in range(4)]
        await asyncio.sleep(0.01)
        await pool.sleep()  # so that none of them can end in time
        draining = asyncio.create_task(pool.drain("engine-0.0", deadline_s=0.1))
        await asyncio.sleep(0.01)
        assert pool.signals().draining == 1
        await pool.scale(1)
        await draining
        outcomes = await asyncio.gather(*unfinished, return_exceptions=True)
        assert all(isinstance(outcome, EngineDrained) for outcome in outcomes), outcomes
        assert pool.signals() == PoolSignals(0, 1, 0, 0, groups_running=0, groups_waiting=0, room=0, kv_use=0.0)
        await pool.scale(0)  # what still joins has nothing to lose
        assert pool.signals().joining == 0
        with pytest.raises(PoolDied):
            await pool.run_group(group("too late"))
        await pool.stop()

    asyncio.run(story())
