"""One engine of the pool: its actor handle, its health, what it has in flight; Ray's failures turned into this room's types."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

import ray
from ray import ObjectRef
from ray.exceptions import RayActorError, RayError, RayTaskError

from actors.config import EngineConfig, RolloutConfig
from actors.failures import EngineFenced, EngineLost
from actors.flow import GroupWindow
from actors.health import EngineHealth
from actors.messages import Examined, GroupRequest, GroupSummary, GroupVoided
from actors.rollout import RolloutActor
from retrieval_service.config import RetrievalConfig
from trajectories.publication import Publication, WeightAck
from trajectories.schema import WeightVersion

_STOP_TIMEOUT_S = 5  # an engine that does not end by itself until then is killed with its actor


class PoolMember:
    """Every call ends with its result, `TimeoutError`, or a `GroupVoided` (`EngineLost` and `EngineFenced` are kinds of it)."""

    def __init__(self, slot: int, incarnation: int, failures: int, config: RolloutConfig) -> None:
        self.slot = slot
        self.incarnation = incarnation
        self.failures = failures  # of its slot in a row, before this engine
        self.created = time.monotonic()
        self.health = EngineHealth(f"engine-{slot}.{incarnation}")
        self.version: WeightVersion | None = None
        self.node_id = ""  # until it is placed
        self.asleep = False
        # Twice what an engine decodes at once: some episodes always wait for a search or for their reward.
        self.window = GroupWindow(2 * config.engine.max_num_seqs // config.group_size)
        self.tokens = 0.0  # in flight, estimated
        self.served: set[str] = set()  # questions, under the version that it has
        self.kv_use = 0.0  # as its last finished group saw it
        self._config = config
        # Never restarted by Ray: a restarted actor would have lost its weights and look as if nothing had happened.
        self.actor: Any = (
            ray.remote(RolloutActor).options(max_restarts=0, max_task_retries=0, **_resources(config.engine)).remote()
        )

    async def start(self, model_dir: str, retrieval_handle: Any, retrieval_config: RetrievalConfig) -> None:
        # Placement first, with its own deadline: a node that the cluster still has to start must not cost the engine its time.
        placed_within_s = self._config.engine.start_timeout_s
        if self._config.autoscale is not None:
            placed_within_s = max(placed_within_s, self._config.autoscale.pending_timeout_s)
        self.node_id = await self._answer(self.actor.node_id.remote(), placed_within_s)
        arguments = (model_dir, self._config.engine, self.health.engine_id, retrieval_handle, retrieval_config, self._config)
        await self._answer(self.actor.start.remote(*arguments), self._config.engine.start_timeout_s)

    async def update(self, publication: Publication) -> WeightAck:
        ack: WeightAck = await self._answer(self.actor.update.remote(publication), self._config.update_timeout_s)
        self.version, self.asleep = publication.version if ack.ok else None, False
        self.served.clear()  # and with the old weights went every cached prompt
        return ack

    async def sleep(self) -> None:
        self.asleep = True
        await self._answer(self.actor.sleep.remote(), self._config.update_timeout_s)

    async def wake(self) -> None:
        await self._answer(self.actor.wake.remote(), self._config.update_timeout_s)

    async def run_group(self, request: GroupRequest) -> tuple[GroupSummary, ObjectRef]:
        """Without a deadline, as `examine` is: the pool keeps the leases."""
        summary_ref, table_ref = self.actor.run_group.options(num_returns=2).remote(request)
        summary: GroupSummary = await self._answer(summary_ref, None)
        return summary, table_ref

    async def examine(self, requests: list[GroupRequest]) -> list[tuple[GroupSummary, list[Examined]]]:
        answered: list[tuple[GroupSummary, list[Examined]]] = await self._answer(self.actor.examine.remote(requests), None)
        return answered

    async def ping(self) -> dict[str, Any]:
        answer: dict[str, Any] = await self._answer(self.actor.ping.remote(), self._config.ping_timeout_s)
        return answer

    async def stop(self) -> None:
        with suppress(GroupVoided, TimeoutError):  # what does not stop is killed
            await self._answer(self.actor.stop.remote(), _STOP_TIMEOUT_S)
        self.kill()

    def kill(self) -> None:
        """The engine's processes watch the actor's and end with it."""
        ray.kill(self.actor, no_restart=True)

    async def _answer(self, ref: ObjectRef, timeout_s: float | None) -> Any:
        engine_id = self.health.engine_id
        try:
            return await asyncio.wait_for(_awaited(ref), timeout_s)
        except (TimeoutError, asyncio.CancelledError):
            ray.cancel(ref)
            raise
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, (EngineLost, EngineFenced)):
                raise type(cause)(str(cause)) from None
            if isinstance(cause, GroupVoided):
                raise GroupVoided(str(cause), cause.cause) from None
            raise GroupVoided(f"engine {engine_id}: {type(cause).__name__}: {cause}") from error
        except RayActorError as error:
            raise EngineLost(f"engine lost: {engine_id}: {_first_line(error)}") from None
        except RayError as error:
            raise GroupVoided(f"engine {engine_id}: {type(error).__name__}: {_first_line(error)}") from error


def _resources(engine: EngineConfig) -> dict[str, Any]:
    """What the scheduler counts for one engine.

    An actor's resources always lie on one node, and vLLM starts its tensor-parallel workers there as processes of its own: so one
    bundle is enough, and no placement group has anything to pack. Several engines share a node as far as its resources reach.
    """
    workers = engine.tensor_parallel_size
    return {
        "num_cpus": engine.cpu_threads * workers if engine.on_cpu else 1,
        "num_gpus": engine.gpus * workers,
        "resources": engine.resources,
    }


async def _awaited(ref: ObjectRef) -> Any:
    return await ref


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
