"""What one group costs the thread of a run loop: the real ledger, events, spool and Ray, around an actor that answers at once."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from ray import ObjectRef

from actors.config import EpisodeBudget
from actors.messages import GroupRequest, GroupSummary
from bench.trajectories import episodes
from rewards.recipes import load_recipe
from tasks.questions import Question
from trajectories.events import EventKind, EventLog
from trajectories.groups import Rules
from trajectories.ledger import Ledger
from trajectories.recorder import Recorder
from trajectories.schema import WeightVersion, to_table

GROUPS = 400  # measured, after as many that are not
IN_FLIGHT = 64
TOKENS = 1_000
V = WeightVersion(1, 0)


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of the driver's thread for one group."""

    admit: float  # ledger and event
    dispatch: float  # the call of the actor, its pickled request included
    finish: float  # summary and rows out of Ray, the spool's hand-off, ledger
    end: float  # its part of a step: take, trained, events

    @property
    def group(self) -> float:
        return self.admit + self.dispatch + self.finish + self.end

    def by_name(self) -> dict[str, float]:
        return {**asdict(self), "all": self.group}


class Answering:
    """As a rollout actor: the summary by value, the rows by reference."""

    def __init__(self, rows: pa.Table) -> None:
        self._rows = rows

    async def run_group(self, request: GroupRequest) -> tuple[GroupSummary, ObjectRef]:
        summary = GroupSummary(
            request.group_id, request.attempt, "e", V, V, [1.0] * request.n, [True] * request.n,
            {f"component-{n}": 0.5 for n in range(8)}, {"answer": request.n}, evidence_levels=[1, 2, 3] * request.n,
        )  # fmt: skip
        return summary, ray.put(self._rows)


def measure(groups: int = GROUPS) -> Costs:
    """Joins a Ray that is there, or starts one and ends it."""
    own = not ray.is_initialized()
    if own:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")  # a loaded machine starts slowly
        ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        actor = ray.remote(Answering).options(num_cpus=0, max_concurrency=IN_FLIGHT).remote(to_table(episodes(0, TOKENS)))
        with tempfile.TemporaryDirectory() as folder:
            return asyncio.run(_drive(actor, Path(folder), groups))
    finally:
        if own:
            ray.shutdown()


async def _drive(actor: Any, folder: Path, groups: int) -> Costs:
    recorder = Recorder(folder, generation=1)
    question = Question(id="q", text="disease-cause ka lo ? " * 20, kind="text", gold="x")
    recipe, budget = load_recipe("med_r3/retrieval"), EpisodeBudget()
    with EventLog(folder / "events.jsonl") as events:
        ledger = Ledger(Rules(groups_per_step=groups, max_staleness=0))

        async def one(name: str) -> None:
            request = GroupRequest("run", name, 0, "p", question, 8, 1.0, 0, budget, recipe)
            ledger.start(name, "e", V)
            _, rows = await actor.run_group.remote(request)
            await asyncio.wrap_future(recorder.finished(await rows))
            ledger.finish(name, 0, V, 0.0)

        for step in (1, 2):  # the first warms up
            names = [f"g{step}-{number}" for number in range(groups)]

            def admit(names: list[str] = names) -> None:
                for name in names:
                    ledger.admit(name, "q", "p", 0.0)
                    events.append(EventKind.ADMITTED, group_id=name, question_id="q", phase="p")

            def end(step: int = step) -> None:
                batch = ledger.take(V)
                assert batch is not None
                ledger.trained(batch, step)
                for ending in ledger.drain_endings():
                    events.append(EventKind.TRAINED, group_id=ending.group_id, engine_id="e", step=step, episodes=8, age=0)
                ledger.retire(step)

            admitted = _own(admit) / groups
            started = time.thread_time()
            for first in range(0, groups, IN_FLIGHT):
                await asyncio.gather(*(one(name) for name in names[first : first + IN_FLIGHT]))
            around = (time.thread_time() - started) / groups
            ended = _own(end) / groups
            request = GroupRequest("run", "g", 0, "p", question, 8, 1.0, 0, budget, recipe)
            calls: list[Any] = []

            def call_all(request: GroupRequest = request, calls: list[Any] = calls) -> None:
                calls.extend(actor.run_group.remote(request) for _ in range(IN_FLIGHT))

            dispatched = _own(call_all) / IN_FLIGHT
            for call in calls:
                await call
    recorder.close()
    return Costs(admitted, dispatched, max(0.0, around - dispatched), ended)


def _own(deed: Callable[[], object]) -> float:
    """Seconds of this thread; what others do meanwhile is not the driver's."""
    started = time.thread_time()
    deed()
    return time.thread_time() - started
