"""The engines of a run: who gets a group, who has which weights, and what happens when one fails.

```
          start                 acked the newest weights
 JOINING ───────▶ STALE ────────────────────────────────▶ HEALTHY ── lease over ──▶ SUSPECT ── ping answers ──▶ STALE
    │               ▲ └ refused twice ─▶ DEAD                │  │                       └ no answer ─▶ DEAD
    └ failed ─▶ DEAD└──────────── refused new weights ───────┘  └ scaled down ─▶ DRAINING ─ empty ─▶ DEAD
 DEAD: the group is voided, and a replacement with a new id starts in the same slot while the slot has restarts left
```

| who waits | for what | is unblocked by |
|---|---|---|
| `run_group` | a HEALTHY engine with room | a refit, another group's end; `PoolDied` once no slot can come back |
| `update` | every HEALTHY engine's ack, or its deadline | engines; without one ack: a replacement, or `PoolDied` |
| a joining engine | its own start and refit, repeated until no newer publication arrived meanwhile | itself |

Plain Ray handles, not RLlib's FaultTolerantActorManager: that one calls a restarted actor healthy though its weights are reset.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from ray import ObjectRef

from actors.config import RolloutConfig
from actors.failures import EngineFenced, EngineLost, PoolDied
from actors.health import EngineState
from actors.member import PoolMember
from actors.messages import GroupRequest, GroupSummary, GroupVoided
from retrieval_service.config import RetrievalConfig
from trajectories.publication import Publication, WeightAck

# An engine that lived this long died of something else than its predecessors: the slot may be restarted as often as a new one.
_STEADY_S = 900

T = TypeVar("T")


class RolloutPool:
    """Lives in the driver's event loop and holds all of its state there; no locks are needed beyond the one around `update`."""

    def __init__(
        self,
        config: RolloutConfig,
        retrieval_handle: Any,
        retrieval_config: RetrievalConfig,
        on_ack: Callable[[WeightAck], None] = lambda ack: None,
    ) -> None:
        """`on_ack` hears every engine's answer to every publication, refits and replacements included."""
        self._config = config
        self._on_ack = on_ack
        self._retrieval = (retrieval_handle, retrieval_config)
        self._members: dict[int, PoolMember] = {}  # by slot; a replacement takes the slot over
        self._joining: dict[int, asyncio.Task[None]] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Condition()
        self._updating = asyncio.Lock()
        self._model_dir = ""
        self._publication: Publication | None = None
        self._published = asyncio.Event()
        self._stopping = False
        # Twice what an engine decodes at once: some episodes always wait for a search or for their reward.
        self._groups_per_engine = max(1, 2 * config.engine.max_num_seqs // config.group_size)

    async def start(self, model_dir: str, publication: Publication | Awaitable[Publication]) -> None:
        """Starts every engine in parallel and proves `publication` on each; returns when none of them is still joining.

        A publication that is still to come (the learner starts as well) is awaited while the engines start.
        """
        self._model_dir = model_dir
        for slot in range(self._config.num_engines):
            self._join(slot)
        self._publication = publication if isinstance(publication, Publication) else await publication
        self._published.set()
        await asyncio.gather(*self._joining.values())
        if not self._healthy():
            raise self._died()

    async def run_group(self, request: GroupRequest) -> tuple[GroupSummary, ObjectRef]:
        """The group's summary, and a reference to its Arrow table. Raises `GroupVoided` with the reason when it fails."""
        return await self._on_an_engine(f"group {request.group_id}", lambda member: member.run_group(request))

    async def examine(self, requests: list[GroupRequest]) -> list[GroupSummary]:
        """The summaries of several small groups, which one engine rolls out together; fails as `run_group` does."""
        return await self._on_an_engine(f"{len(requests)} questions", lambda member: member.examine(requests))

    async def _on_an_engine(self, what: str, work: Callable[[PoolMember], Awaitable[T]]) -> T:
        member = await self._reserve()
        try:
            return await work(member)
        except TimeoutError:
            reason = f"lease over: {member.health.engine_id} had {what} for {self._config.group_timeout_s:g} s"
            self._suspect(member, reason)
            raise GroupVoided(reason) from None
        except EngineFenced as error:
            self._refit_later(member, str(error))
            raise
        except EngineLost as error:
            self._replace(member, str(error))
            raise
        finally:
            member.groups -= 1
            await self._notify()

    async def update(self, publication: Publication) -> list[WeightAck]:
        """Brings new weights to every engine that works; those that join or are refitted meanwhile follow by themselves."""
        async with self._updating:
            self._publication = publication
            acks = list(await asyncio.gather(*(self._update_member(member, publication) for member in self._healthy())))
            await self._notify()
            if not any(ack.ok for ack in acks):
                if any(ack.seconds for ack in acks):  # an engine that lives and answers refuses it: another one would, too
                    raise PoolDied("; ".join(f"{ack.engine_id} refused {ack.version}: {ack.reason}" for ack in acks))
                await self._until_healthy()
            return acks

    def states(self) -> dict[str, str]:
        return {member.health.engine_id: member.health.state.value for member in self._members.values()}

    async def scale(self, num_engines: int) -> None:
        """Adds engines (they join in the background) or drains the last ones: they finish their groups, then end."""
        for slot in range(num_engines):
            if slot not in self._members:
                self._join(slot)
        for slot in [slot for slot in self._members if slot >= num_engines]:
            self._spawn(self._drain(self._members[slot]))
        await self._notify()

    async def stop(self) -> None:
        """Ends every engine; groups in flight are lost with them."""
        self._stopping = True
        tasks = [*self._background, *self._joining.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(self._end(member, "the pool stops") for member in self._members.values() if member.health.alive))
        await self._notify()

    # --- which engine gets a group

    async def _reserve(self) -> PoolMember:
        async with self._changed:
            await self._changed.wait_for(lambda: self._stopping or self._with_room() or not self._recoverable())
            free = self._with_room()
            if self._stopping or not free:
                raise self._died()
            member = min(free, key=lambda candidate: candidate.groups)
            member.groups += 1
            return member

    async def _until_healthy(self) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._stopping or bool(self._healthy()) or not self._recoverable())
            if not self._healthy():
                raise self._died()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _healthy(self) -> list[PoolMember]:
        return [member for member in self._members.values() if member.health.takes_work]

    def _with_room(self) -> list[PoolMember]:
        return [member for member in self._healthy() if member.groups < self._groups_per_engine]

    def _recoverable(self) -> bool:
        return any(member.health.alive for member in self._members.values()) or bool(self._joining)

    def _died(self) -> PoolDied:
        reasons = "; ".join(f"{m.health.engine_id}: {m.health.last_reason}" for m in self._members.values())
        return PoolDied(f"no engine can take work ({reasons or 'none was started'})")

    # --- joining, and weights

    def _join(self, slot: int, incarnation: int = 0, failures: int = 0) -> None:
        task = asyncio.create_task(self._join_until_healthy(slot, incarnation, failures))
        self._joining[slot] = task
        task.add_done_callback(lambda ended: self._joining.pop(slot, None) if self._joining.get(slot) is ended else None)

    async def _join_until_healthy(self, slot: int, incarnation: int, failures: int) -> None:
        for failed in range(failures, self._config.max_engine_restarts + 1):
            member = self._members[slot] = PoolMember(slot, incarnation + failed - failures, failed, self._config)
            try:
                await member.start(self._model_dir, *self._retrieval)
                await self._published.wait()
                if member.health.state is EngineState.JOINING:  # it may have been drained meanwhile
                    member.health.move(EngineState.STALE, "started")
                    await self._refit(member)
                break
            except TimeoutError:
                self._bury(member, f"not ready after {self._config.engine.start_timeout_s:g} s; has the cluster room for it?")
            except GroupVoided as error:
                self._bury(member, f"did not join: {error}")
        self._joining.pop(slot, None)
        await self._notify()

    async def _refit(self, member: PoolMember) -> None:
        """STALE → HEALTHY. Repeats while newer weights are published during the refit."""
        while (publication := self._publication) is not None and member.version != publication.version:
            ack = await self._told(member, publication)
            if not ack.ok:
                raise EngineLost(f"engine {member.health.engine_id} refused {publication.version}: {ack.reason}")
        if member.health.state is EngineState.STALE:
            member.health.move(EngineState.HEALTHY, f"acked {member.version}")

    async def _update_member(self, member: PoolMember, publication: Publication) -> WeightAck:
        """One engine's ack; a refusal is tried once more, because a refused engine is fenced but whole."""
        engine_id = member.health.engine_id
        try:
            ack = await self._told(member, publication)
            if not ack.ok:
                self._fence(member, ack.reason)
                ack = await self._told(member, publication)
        except (TimeoutError, GroupVoided) as error:
            reason = str(error) or f"no ack within {self._config.update_timeout_s:g} s"
            self._replace(member, reason)
            return WeightAck(engine_id, publication.version, False, "", float("nan"), reason)
        if not ack.ok:
            self._replace(member, f"refused {publication.version} twice: {ack.reason}")
        elif member.health.state is EngineState.STALE:
            member.health.move(EngineState.HEALTHY, f"acked {publication.version}")
        return ack

    async def _told(self, member: PoolMember, publication: Publication) -> WeightAck:
        ack = await member.update(publication)
        self._on_ack(ack)
        return ack

    # --- failures

    def _fence(self, member: PoolMember, reason: str) -> None:
        if member.health.state is EngineState.HEALTHY:
            member.health.move(EngineState.STALE, reason)

    def _refit_later(self, member: PoolMember, reason: str) -> None:
        """The engine refused a group: its weights are not proved. While an update runs, that update settles it."""
        if member.health.state is EngineState.HEALTHY and not self._updating.locked():
            self._fence(member, reason)
            self._spawn(self._recover(member))

    def _suspect(self, member: PoolMember, reason: str) -> None:
        if member.health.state is EngineState.HEALTHY:
            member.health.move(EngineState.SUSPECT, reason)
            self._spawn(self._recover(member))

    async def _recover(self, member: PoolMember) -> None:
        """SUSPECT or STALE → HEALTHY, or replaced."""
        try:
            await member.ping()
            if member.health.may(EngineState.STALE):
                member.health.move(EngineState.STALE, "answered a ping")
            member.version = None  # prove it again: it may have been fenced
            await self._refit(member)
        except (TimeoutError, GroupVoided) as error:
            self._replace(member, f"did not recover: {error or 'no answer'}")
        await self._notify()

    def _replace(self, member: PoolMember, reason: str) -> None:
        if self._members.get(member.slot) is not member or not member.health.alive:
            return  # somebody else has seen it die
        draining = member.health.state is EngineState.DRAINING
        self._bury(member, reason)
        if not draining and not self._stopping:
            steady = time.monotonic() - member.created > _STEADY_S
            self._join(member.slot, member.incarnation + 1, 0 if steady else member.failures + 1)

    def _bury(self, member: PoolMember, reason: str) -> None:
        if member.health.alive:
            member.health.move(EngineState.DEAD, reason)
            member.kill()

    async def _drain(self, member: PoolMember) -> None:
        if not member.health.may(EngineState.DRAINING):
            return
        member.health.move(EngineState.DRAINING, "scaled down")
        async with self._changed:
            await self._changed.wait_for(lambda: member.groups == 0 or not member.health.alive)
        await self._end(member, "drained")
        if self._members.get(member.slot) is member:
            del self._members[member.slot]
        await self._notify()

    async def _end(self, member: PoolMember, reason: str) -> None:
        await member.stop()
        if member.health.alive:
            member.health.move(EngineState.DEAD, reason)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)  # the event loop itself keeps only weak references
        task.add_done_callback(self._background.discard)
