"""A run on an elastic cluster, told in JSON lines: real engines, feed, ledger, autoscaler and scaling; only the learner is a clock.

It is a program of its own because Ray reads the token of a cluster once per process.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import psutil
import ray
from ray.exceptions import RayError

from actors.member import PoolMember
from actors.messages import GroupRequest
from actors.pool import RolloutPool
from curriculum.controller import Controller
from learner.client import LearnerClient
from learner.publishing import KEPT_VERSIONS
from medr3.config import RunConfig, load
from medr3.observe.tracker import Tracker
from medr3.run.feed import Feed
from medr3.run.journal import Journal
from medr3.run.loop import TrainingLoop
from medr3.run.progress import Progress
from medr3.run.sampler import QuestionSampler
from medr3.run.scaling import Scaling
from medr3.run.state import RunState
from medr3.run.watchdog import Watchdog
from retrieval_service.config import RetrievalConfig
from tasks.world import Universe
from tests.e2e.actors_tiny_model import build_model, publish, save_model
from tests.e2e.elastic_cluster import NOTICE_S
from trajectories.events import EventKind, EventLog
from trajectories.ledger import Ledger
from trajectories.publication import Publication, WeightAck
from trajectories.recorder import Recorder
from trajectories.schema import WeightVersion

SETTINGS = [
    "world.training_worlds=2", "rollout.group_size=8", "rollout.groups_per_step=32", "rollout.max_staleness=1", "rollout.max_attempts=9",
    "rollout.engine={device: cpu, gpus: 1, cpu_threads: 1, kv_cache_mib: 64, max_model_len: 256, max_num_seqs: 32}",
    "rollout.autoscale={min_engines: 1, max_engines: 4, interval_s: 0.5, window_s: 4, up_cooldown_s: 1, down_cooldown_s: 15}",
    "budget={max_turn_tokens: 24, max_response_tokens: 24}",
]  # fmt: skip
STARVED_S, SATED_S = 0.01, 6.0  # how long a step of the clock takes: far less, and far more, than engines need for a batch
POLITE = 5  # a quarter of the cores while another engine starts
_begun = time.monotonic()


def tell(what: str, **facts: Any) -> None:
    print(json.dumps({"what": what, "at": round(time.monotonic() - _begun, 1), **facts}), flush=True)


class WatchedPool(RolloutPool):
    """Counts the answers, and compares what they say with what the engines acknowledged."""

    def __init__(self, config: RunConfig, journal: Journal) -> None:
        super().__init__(config.rollout, None, RetrievalConfig(), on_ack=self._heard)
        self._journal = journal
        self._bury, self._roster._bury = self._roster._bury, self._buried
        self.answers: Counter[str] = Counter()
        self.acked: set[tuple[str, WeightVersion]] = set()
        self.unproved: list[str] = []

    def _buried(self, member: PoolMember, reason: str) -> None:
        tell("buried", engine=member.health.engine_id, reason=reason[:300])
        self._bury(member, reason)

    def _heard(self, ack: WeightAck) -> None:
        self._journal.ack(ack)
        if ack.ok:
            self.acked.add((ack.engine_id, ack.version))

    async def run_group(self, request: GroupRequest, *rest: Any) -> Any:
        summary, rows = await super().run_group(request, *rest)
        self.answers[request.group_id] += 1
        for episode in (await rows).to_pylist():
            for span in episode["versions"]:
                version = WeightVersion(span["generation"], span["number"])
                if (summary.engine_id, version) not in self.acked:
                    self.unproved.append(f"{summary.engine_id} sampled {request.group_id} under {version}")
        return summary, rows

    def ids(self, state: str) -> list[str]:
        return sorted(engine for engine, now in self.states().items() if now == state)

    async def pid(self, engine_id: str) -> int:
        members = {member.health.engine_id: member for member in self._roster.members.values()}
        return int((await members[engine_id].actor.ping.remote())["pid"])  # however long it takes


class Run:
    """One run, from its first engine to its last."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.learn_s = folder, SATED_S
        config = load(Path("configs/demo.yaml"), [*SETTINGS, f"run.folder={folder}"])
        universe = Universe.build(config.world, 0)
        recorder = Recorder(folder / "trajectories", generation=1)
        journal = Journal(folder, EventLog(folder / "events.jsonl"), cast(Tracker, None), recorder)
        self.pool = WatchedPool(config, journal)
        self.state = RunState(
            config=config, universe=universe, index_hash="", pool=self.pool, learner=cast(LearnerClient, None), journal=journal,
            ledger=Ledger(config.ledger_rules()), sampler=QuestionSampler(universe, 0), controller=Controller(config.curriculum),
            progress=Progress(), watchdog=Watchdog(300), version=WeightVersion(1, 0), publication=cast(Publication, None),
        )  # fmt: skip
        self.scaling = Scaling(self.state)
        self._loop = TrainingLoop(self.state)

    async def go(self, tale: Callable[[Run], Any]) -> None:
        state = self.state
        state.journal.events.append(EventKind.RUN_STARTED, run_id="elastic", generation=1, max_staleness=1)
        model_dir = save_model(self.folder / "model")
        first = publish(build_model(0), self.folder, 0)
        state.journal.published(first)
        await self.pool.start(model_dir, first)
        tell("started", states=self.pool.states())
        async with asyncio.TaskGroup() as tasks:
            lasting = (Feed(state).run(), self.scaling.run(), self._train(), self._give_way())
            started = [tasks.create_task(work) for work in lasting]
            await tale(self)
            for task in started:
                task.cancel()
        await self.pool.stop()
        state.ledger.drop(state.ledger.open_ids(), "run ended")
        state.journal.endings(state.ledger, state.finished, state.version)
        state.journal.store_rest(state.progress.step)
        state.journal.events.append(EventKind.STOPPED, step=state.progress.step, reason="the tale is told")
        state.journal.store.close()
        pool, counts = self.pool, state.ledger.counts()
        twice = [group for group, times in pool.answers.items() if times > 1]
        tell(
            "ended", steps=state.progress.step, admitted=counts.admitted, trained=counts.trained, dropped=counts.dropped,
            voided=counts.voided, requeued=counts.requeued, late=counts.late, reasons=counts.reasons,
            oldest=max(state.ledger.ages), answered_twice=twice, unproved=pool.unproved,
        )  # fmt: skip

    async def _train(self) -> None:
        while True:
            await self._step()

    async def _step(self) -> None:
        state = self.state
        with state.watchdog.stage("rollout"):
            batch = await self._loop._next_batch()
        with state.watchdog.stage("learn"):
            await asyncio.sleep(self.learn_s)
        step = state.progress.step + 1
        with state.watchdog.stage("sync"):
            publication = await asyncio.to_thread(lambda: publish(build_model(step), self.folder, step))
            state.journal.published(publication)
            await state.pool.update(publication)
            state.version = publication.version
            (self.folder / f"weights-{step - KEPT_VERSIONS}.safetensors").unlink(missing_ok=True)
        state.ledger.trained(batch, step)
        state.progress.step = step
        state.journal.endings(state.ledger, state.finished, WeightVersion(1, step - 1))
        state.journal.store_step(step)
        state.ledger.retire(step)
        state.slot_free.set()

    async def _give_way(self) -> None:
        """Engines that sample leave the cores to those that start: how fast four of them share two cores is not the question."""
        polite: set[str] = set()
        while True:
            for engine_id in {*self.pool.ids("healthy")} - polite:
                with suppress(RayError, KeyError, psutil.Error):  # it is dying
                    actor = psutil.Process(await self.pool.pid(engine_id))
                    for process in (actor, *actor.children(recursive=True)):
                        process.nice(POLITE)
                    polite.add(engine_id)
            await asyncio.sleep(0.5)

    async def until(self, reached: Callable[[], bool], seconds: float, what: str) -> float:
        """Seconds that it took."""
        began = time.monotonic()
        while not reached():
            if time.monotonic() - began > seconds:
                raise TimeoutError(f"{what}: not within {seconds} s: {self.pool.states()}, {self.pool.signals()}, {nodes()}")
            await asyncio.sleep(0.05)
        return round(time.monotonic() - began, 1)


def nodes() -> int:
    """Living nodes beside the head."""
    return sum(node["Alive"] for node in ray.nodes()) - 1


def raylet_of(node_id: str) -> psutil.Process:
    for process in psutil.process_iter():
        try:
            if process.name() == "raylet" and process.environ().get("RAY_OVERRIDE_NODE_ID_FOR_TESTING") == node_id:
                return process
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    raise RuntimeError(f"node {node_id} has no raylet here")


async def victims(run: Run, engine_id: str, what: str) -> list[int]:
    """The processes that are to die: the engine's vLLM, its actor, or every process of its node."""
    actor = await run.pool.pid(engine_id)
    if what == "vllm":
        return [
            child.pid for child in psutil.Process(actor).children(recursive=True) if "EngineCore" in " ".join(child.cmdline())
        ]
    if what == "actor":
        return [actor]
    raylet = raylet_of(run.pool.nodes()[engine_id])
    return [raylet.pid, *(child.pid for child in raylet.children(recursive=True))]


async def kill(run: Run, what: str) -> None:
    """Kills what an engine with groups in hand stands on; tells how long until the pool knew, and until it was whole again."""
    healthy = len(run.pool.ids("healthy"))
    members = run.pool._roster.members
    await run.until(lambda: any(m.window.in_hand and m.health.takes_work for m in members.values()), 60, "work")
    victim = max((m for m in members.values() if m.health.takes_work), key=lambda m: m.window.in_hand)
    engine_id, slot, pids = victim.health.engine_id, victim.slot, await victims(run, victim.health.engine_id, what)
    in_hand, began = victim.window.in_hand, time.monotonic()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    known_s = await run.until(lambda: run.pool.states().get(engine_id) != "healthy", 60, f"{what} of {engine_id} is gone")
    why = victim.health.last_reason
    await run.until(lambda: len(run.pool.ids("healthy")) == healthy, 180, f"{what} of {engine_id} is replaced")
    replacement = members[slot].health.engine_id
    whole_s = round(time.monotonic() - began, 1)
    tell(
        "killed",
        process=what,
        engine=engine_id,
        in_hand=in_hand,
        known_s=known_s,
        whole_s=whole_s,
        by=replacement,
        reason=why[:200],
    )


async def give_notice(run: Run) -> None:
    """A spot notice, as a cluster manager passes it on."""
    from ray._raylet import GcsClient
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason

    engine_id = run.pool.ids("healthy")[0]
    node = run.pool.nodes()[engine_id]
    client = GcsClient(address=ray.get_runtime_context().gcs_address)
    reason, deadline_ms = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"), int((time.time() + NOTICE_S) * 1000)
    accepted, why = client.drain_node(node, reason, "the provider takes it back", deadline_ms)
    assert accepted, why
    began = time.monotonic()
    seconds = {}
    for what, reached, most in (
        ("heeded", lambda: run.pool.states().get(engine_id) != "healthy", 20),
        ("left", lambda: engine_id not in run.pool.states(), NOTICE_S),
        ("node_gone", lambda: not any(each["NodeID"] == node and each["Alive"] for each in ray.nodes()), 60 + NOTICE_S),
        ("whole", lambda: len(run.pool.ids("healthy")) == 4, 180),
    ):
        await run.until(reached, most, what)
        seconds[f"{what}_s"] = round(time.monotonic() - began, 1)
    tell("noticed", engine=engine_id, **seconds)


async def tale(run: Run) -> None:
    run.learn_s = STARVED_S
    seconds = await run.until(lambda: len(run.pool.ids("healthy")) == 4, 240, "growth")
    tell("grown", seconds=seconds, nodes=nodes())
    run.scaling.set_target(4)  # whatever the load says of a pool that is one short
    run.learn_s = 0.5  # leaves the cores to those that start
    for what in ("vllm", "actor", "node"):
        await kill(run, what)
    await give_notice(run)
    run.learn_s = SATED_S
    run.scaling.set_target(None)
    seconds = await run.until(lambda: len(run.pool.states()) == 1, 120, "shrinking")
    tell("shrunk", seconds=seconds, nodes_gone_s=await run.until(lambda: nodes() == 1, 60, "nodes going"))


if __name__ == "__main__":
    ray.init(log_to_driver=False, logging_level="ERROR")
    asyncio.run(Run(Path(sys.argv[1])).go(tale))
