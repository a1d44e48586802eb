"""The engines of a pool: how each one joins, follows the weights, fails, is replaced, and ends. `actors/pool.py` draws the states."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from actors.config import RolloutConfig
from actors.failures import EngineLost, PoolDied
from actors.health import EngineState
from actors.member import PoolMember
from actors.messages import GroupVoided
from retrieval_service.config import RetrievalConfig
from trajectories.publication import Publication, WeightAck

# An engine that lived this long died of something else than its predecessors: the slot may be restarted as often as a new one.
_STEADY_S = 900


class Roster:
    """Lives in the driver's event loop. `changed` is notified whenever an engine's state, or what it has in hand, changes."""

    def __init__(
        self, config: RolloutConfig, retrieval: tuple[Any, RetrievalConfig], on_ack: Callable[[WeightAck], None]
    ) -> None:
        self.members: dict[int, PoolMember] = {}  # by slot; a replacement takes the slot over
        self.joining: dict[int, asyncio.Task[None]] = {}
        self.changed = asyncio.Condition()
        self.updating = asyncio.Lock()
        self.awake = asyncio.Event()  # cleared while the learner has the hardware: nobody starts or is refitted meanwhile
        self.awake.set()
        self.publication: Publication | None = None
        self.published = asyncio.Event()
        self.stopping = False
        self.model_dir = ""
        self.restarts = 0  # engines that took the place of one that failed
        self._config = config
        self._retrieval = retrieval
        self._on_ack = on_ack
        self._incarnations: Counter[int] = Counter()  # by slot: no engine's id is ever another one's
        self._background: set[asyncio.Task[None]] = set()
        self._busy = 0  # engines that start or are refitted just now

    def healthy(self) -> list[PoolMember]:
        return [member for member in self.members.values() if member.health.takes_work]

    def staying(self) -> list[int]:
        """Slots whose engine works, will work, or is about to be replaced."""
        leaving = {EngineState.DRAINING, EngineState.DEAD}
        return sorted({*self.joining, *(slot for slot, m in self.members.items() if m.health.state not in leaving)})

    def recoverable(self) -> bool:
        return any(member.health.alive for member in self.members.values()) or bool(self.joining)

    def died(self) -> PoolDied:
        reasons = "; ".join(f"{m.health.engine_id}: {m.health.last_reason}" for m in self.members.values())
        return PoolDied(f"no engine can take work ({reasons or 'none was started'})")

    async def notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def settled(self) -> None:
        """No engine starts or is refitted."""
        async with self.changed:
            await self.changed.wait_for(lambda: not self._busy)

    # --- joining, and weights

    def join(self, slot: int, failures: int = 0, *, replaces: bool = False) -> None:
        task = asyncio.create_task(self._join_until_healthy(slot, failures, replaces))
        self.joining[slot] = task
        task.add_done_callback(lambda ended: self.joining.pop(slot, None) if self.joining.get(slot) is ended else None)

    def join_more(self, count: int) -> None:
        """On the lowest places that are free; one whose engines died too often is free as well."""
        taken = {*self.joining, *(slot for slot, member in self.members.items() if member.health.alive)}
        free = (slot for slot in range(len(taken) + count) if slot not in taken)
        for slot, _ in zip(free, range(count), strict=False):
            self.join(slot)

    async def _join_until_healthy(self, slot: int, failures: int, replaces: bool) -> None:
        for failed in range(failures, self._config.max_engine_restarts + 1):
            async with self._at_work():
                self.restarts += replaces or failed > failures
                member = self.members[slot] = PoolMember(slot, self._incarnations[slot], failed, self._config)
                self._incarnations[slot] += 1
                try:
                    await member.start(self.model_dir, *self._retrieval)
                    await self.published.wait()
                    member.health.move(EngineState.STALE, "started")
                    await self._refit(member)
                    break
                except TimeoutError:
                    self._bury(
                        member, f"not ready after {self._config.engine.start_timeout_s:g} s; has the cluster room for it?"
                    )
                except GroupVoided as error:
                    self._bury(member, f"did not join: {error}")
        self.joining.pop(slot, None)
        await self.notify()

    @asynccontextmanager
    async def _at_work(self) -> AsyncIterator[None]:
        await self.awake.wait()
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1
            if not self.stopping:
                await self.notify()

    async def _refit(self, member: PoolMember) -> None:
        """STALE → HEALTHY. Repeats while newer weights are published during the refit."""
        while (publication := self.publication) is not None and member.version != publication.version:
            ack = await self._told(member, publication)
            if not ack.ok:
                raise EngineLost(f"engine {member.health.engine_id} refused {publication.version}: {ack.reason}")
        if member.health.state is EngineState.STALE:
            member.health.move(EngineState.HEALTHY, f"acked {member.version}")

    async def update(self, member: PoolMember, publication: Publication) -> WeightAck:
        """One engine's ack; a refusal is tried once more, because a refused engine is fenced but whole."""
        engine_id = member.health.engine_id
        try:
            ack = await self._told(member, publication)
            if not ack.ok:
                self._fence(member, ack.reason)
                ack = await self._told(member, publication)
        except (TimeoutError, GroupVoided) as error:
            reason = str(error) or f"no ack within {self._config.update_timeout_s:g} s"
            self.replace(member, reason)
            return WeightAck(engine_id, publication.version, False, "", float("nan"), reason)
        if not ack.ok:
            self.replace(member, f"refused {publication.version} twice: {ack.reason}")
        elif member.health.state is EngineState.STALE:
            member.health.move(EngineState.HEALTHY, f"acked {publication.version}")
        return ack

    async def _told(self, member: PoolMember, publication: Publication) -> WeightAck:
        ack = await member.update(publication)
        self._on_ack(ack)
        return ack

    async def or_replaced(self, member: PoolMember, order: Coroutine[Any, Any, None]) -> None:
        """An engine that does not obey is no use."""
        try:
            await order
        except (TimeoutError, GroupVoided) as error:
            self.replace(member, str(error) or f"did not obey within {self._config.update_timeout_s:g} s")

    # --- failures

    def _fence(self, member: PoolMember, reason: str) -> None:
        if member.health.state is EngineState.HEALTHY:
            member.health.move(EngineState.STALE, reason)

    def refit_later(self, member: PoolMember, reason: str) -> None:
        """The engine refused a group: its weights are not proved. While an update runs, that update settles it."""
        if member.health.state is EngineState.HEALTHY and not self.updating.locked():
            self._fence(member, reason)
            self.spawn(self._recover(member))

    def suspect(self, member: PoolMember, reason: str) -> None:
        if member.health.state is EngineState.HEALTHY:
            member.health.move(EngineState.SUSPECT, reason)
            self.spawn(self._recover(member))

    async def _recover(self, member: PoolMember) -> None:
        """SUSPECT or STALE → HEALTHY, or replaced."""
        async with self._at_work():
            try:
                await member.ping()
                if member.health.may(EngineState.STALE):
                    member.health.move(EngineState.STALE, "answered a ping")
                member.version = None  # prove it again: it may have been fenced
                await self._refit(member)
            except (TimeoutError, GroupVoided) as error:
                self.replace(member, f"did not recover: {error or 'no answer'}")

    def replace(self, member: PoolMember, reason: str) -> None:
        if self.members.get(member.slot) is not member or not member.health.alive:
            return  # somebody else has seen it die
        draining = member.health.state is EngineState.DRAINING
        self._bury(member, reason)
        if not draining and not self.stopping:
            steady = time.monotonic() - member.created > _STEADY_S
            self.join(member.slot, 0 if steady else member.failures + 1, replaces=True)

    def _bury(self, member: PoolMember, reason: str) -> None:
        if member.health.alive:
            member.health.move(EngineState.DEAD, reason)
            member.kill()

    # --- ending

    def dismiss(self, slot: int, reason: str) -> PoolMember | None:
        """The engine of this place takes nothing new, and nothing replaces it. None: it had nothing in hand and is gone."""
        if joining := self.joining.pop(slot, None):
            joining.cancel()
        member = self.members.get(slot)
        if member is None or not member.health.alive:
            return None
        if member.health.state is EngineState.JOINING:
            self._bury(member, reason)
            del self.members[slot]
            return None
        member.health.move(EngineState.DRAINING, reason)
        return member

    async def drained(self, member: PoolMember, deadline_s: float | None = None) -> None:
        """Ends a dismissed engine when it has nothing in hand, or at the deadline with what it has."""
        try:
            async with asyncio.timeout(deadline_s), self.changed:
                await self.changed.wait_for(lambda: not member.window.in_hand or not member.health.alive)
        except TimeoutError:
            self._bury(member, f"drained, with {member.window.in_hand} groups that were not done in time")
        await self.end(member, "drained")
        if self.members.get(member.slot) is member:
            del self.members[member.slot]
        await self.notify()

    async def end(self, member: PoolMember, reason: str) -> None:
        if not member.health.alive:
            return
        await member.stop()
        if member.health.alive:
            member.health.move(EngineState.DEAD, reason)

    async def stop(self) -> None:
        """Ends every engine; groups in flight are lost with them."""
        self.stopping = True
        tasks = [*self._background, *self.joining.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(self.end(member, "the pool stops") for member in self.members.values()))
        await self.notify()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)  # the event loop itself keeps only weak references
        task.add_done_callback(self._background.discard)
