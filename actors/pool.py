"""The engines of a run: who gets a group, who has which weights, and what happens when one fails.

```
          start                 acked the newest weights
 JOINING ───────▶ STALE ────────────────────────────────▶ HEALTHY ── lease over ──▶ SUSPECT ── ping answers ──▶ STALE
    │               ▲ └ refused twice ─▶ DEAD                │  │                       └ no answer ─▶ DEAD
    └ failed ─▶ DEAD└──────────── refused new weights ───────┘  └ dismissed ─▶ DRAINING ─ empty, or too late ─▶ DEAD
 DEAD: the group is voided, and a replacement with a new id starts in the same slot while the slot has restarts left
```

| who waits | for what | is unblocked by |
|---|---|---|
| `run_group` | a HEALTHY engine with room in its window | a refit, another group's end; `PoolDied` once no slot can come back |
| `update` | every HEALTHY engine's ack, or its deadline | engines; without one ack: a replacement, or `PoolDied` |
| a joining engine | its own start and refit, repeated until no newer publication arrived meanwhile | itself |
| `drain` | the engine's last group, or its deadline | groups ending; what is left then is voided (`EngineDrained`) |
| `sleep` | engines that start or are refitted; then every engine that works, to stop | engines, or their deadline |
| everybody, between `sleep` and `update` | the learner | `update` |

Plain Ray handles, not RLlib's FaultTolerantActorManager: that one calls a restarted actor healthy though its weights are reset.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, TypeVar

from ray import ObjectRef

from actors.balancing import Candidate, Employed, TokenEstimate, choose, first_to_go
from actors.config import RolloutConfig
from actors.failures import EngineDrained, EngineFenced, EngineLost, PoolDied
from actors.health import EngineState
from actors.lease import Leases
from actors.member import PoolMember
from actors.messages import Examined, GroupRequest, GroupSummary, GroupVoided
from actors.roster import Roster
from actors.signals import PoolSignals
from retrieval_service.config import RetrievalConfig
from trajectories.publication import Publication, WeightAck
from trajectories.schema import WeightVersion

T = TypeVar("T")


class RolloutPool:
    """Lives in the driver's event loop and holds all of its state there; no locks are needed beyond the one around updates."""

    def __init__(
        self,
        config: RolloutConfig,
        retrieval_handle: Any,
        retrieval_config: RetrievalConfig,
        on_ack: Callable[[WeightAck], None] = lambda ack: None,
    ) -> None:
        """`on_ack` hears every engine's answer to every publication, refits and replacements included."""
        self._config = config
        self._roster = Roster(config, (retrieval_handle, retrieval_config), on_ack)
        self._leases = Leases()
        self._estimate = TokenEstimate()
        self._waiting = 0

    async def start(self, model_dir: str, publication: Publication | Awaitable[Publication]) -> None:
        """Starts every engine in parallel and proves `publication` on each; returns when none of them is still joining.

        A publication that is still to come (the learner starts as well) is awaited while the engines start.
        """
        roster = self._roster
        roster.model_dir = model_dir
        roster.join_more(self._config.num_engines)
        roster.publication = publication if isinstance(publication, Publication) else await publication
        roster.published.set()
        await asyncio.gather(*roster.joining.values())
        if not roster.healthy():
            raise roster.died()

    async def run_group(
        self, request: GroupRequest, on_start: Callable[[str], None] = lambda engine_id: None
    ) -> tuple[GroupSummary, ObjectRef]:
        """The group's summary, and a reference to its Arrow table. Raises `GroupVoided` with the reason when it fails.

        `on_start` hears which engine it went to, at the moment it does: until then the group has no age.
        """

        async def run(member: PoolMember) -> tuple[list[GroupSummary], ObjectRef]:
            on_start(member.health.engine_id)
            summary, table = await member.run_group(request)
            return [summary], table

        summaries, table = await self._on_an_engine([request], run)
        return summaries[0], table

    async def examine(self, requests: list[GroupRequest]) -> list[Examined]:
        """The episodes of several small groups, in order, which one engine rolls out together; fails as `run_group` does."""

        async def run(member: PoolMember) -> tuple[list[GroupSummary], list[Examined]]:
            answered = await member.examine(requests)
            return [summary for summary, _ in answered], [record for _, records in answered for record in records]

        return (await self._on_an_engine(requests, run))[1]

    async def _on_an_engine(
        self, requests: list[GroupRequest], work: Callable[[PoolMember], Awaitable[tuple[list[GroupSummary], T]]]
    ) -> tuple[list[GroupSummary], T]:
        tokens = self._estimate.of(sum(request.n for request in requests))
        member = await self._reserve(requests, tokens)
        began_under, ended = member.version, []
        try:
            async with self._leases.lease(self._config.group_timeout_s):
                summaries, more = await work(member)
            self._verify(member, began_under, requests, summaries)
            ended = summaries
            self._learn(member, requests, summaries)
        except TimeoutError:
            what = f"group {requests[0].group_id}" if len(requests) == 1 else f"{len(requests)} questions"
            reason = f"lease over: {member.health.engine_id} had {what} for {self._config.group_timeout_s:g} s"
            self._roster.suspect(member, reason)
            raise GroupVoided(reason, "lease") from None
        except EngineFenced as error:
            self._roster.refit_later(member, str(error))
            raise
        except EngineLost as error:
            self._lost(member, error)
        else:
            return summaries, more
        finally:
            member.tokens = max(0.0, member.tokens - tokens)
            if ended:
                member.kv_use = max(summary.kv_use for summary in ended)
                member.window.end(member.kv_use, max(summary.preemptions for summary in ended))
            else:
                member.window.end()
            await self._roster.notify()

    def _lost(self, member: PoolMember, error: EngineLost) -> NoReturn:
        if member.health.was_drained:
            raise EngineDrained(f"{member.health.engine_id}: {member.health.last_reason}") from error
        self._roster.replace(member, str(error))
        raise error

    def _verify(
        self,
        member: PoolMember,
        began_under: WeightVersion | None,
        requests: list[GroupRequest],
        summaries: list[GroupSummary],
    ) -> None:
        """An engine whose answer contradicts its acks is not refitted but replaced: its own account of itself is worth nothing."""
        newest = self._roster.publication.version if self._roster.publication else None
        for request, summary in zip(requests, summaries, strict=True):
            wrong = ""
            if (summary.group_id, summary.attempt) != (request.group_id, request.attempt):
                wrong = f"answered {summary.group_id}.{summary.attempt} when asked for {request.group_id}.{request.attempt}"
            elif began_under is not None and summary.oldest < began_under:
                wrong = f"sampled group {request.group_id} under {summary.oldest} although it had acked {began_under}"
            elif newest is not None and summary.newest > newest:
                wrong = f"sampled group {request.group_id} under {summary.newest}, which was never published"
            if wrong:
                self._roster.replace(member, wrong)
                raise GroupVoided(f"engine {member.health.engine_id} {wrong}")

    def _learn(self, member: PoolMember, requests: list[GroupRequest], summaries: list[GroupSummary]) -> None:
        """What a finished group says about those to come."""
        for request, summary in zip(requests, summaries, strict=True):
            episodes = len(summary.rewards)
            self._estimate.observe(summary.prompt_tokens + summary.model_tokens + summary.document_tokens, episodes)
            if summary.newest == member.version:
                member.served.add(request.question.id)

    async def update(self, publication: Publication) -> list[WeightAck]:
        """Brings new weights to every engine that works; those that join or are refitted meanwhile follow by themselves.

        Ends what `sleep` began.
        """
        roster = self._roster
        async with roster.updating:
            roster.publication = publication
            alive = [member for member in roster.members.values() if member.health.alive]
            members = [member for member in alive if member.health.takes_work or member.asleep]
            acks = list(await asyncio.gather(*(roster.update(member, publication) for member in members)))
            roster.awake.set()
            self._leases.go_on()
            await roster.notify()
            if not any(ack.ok for ack in acks):
                if any(ack.seconds for ack in acks):  # an engine that lives and answers refuses it: another one would, too
                    raise PoolDied("; ".join(f"{ack.engine_id} refused {ack.version}: {ack.reason}" for ack in acks))
                await self._until_healthy()
            return acks

    # --- the learner has the hardware

    async def sleep(self) -> None:
        """No engine samples, and on GPUs none holds memory, until the next `update`. Groups in hand are kept, leases stand still."""
        roster = self._roster
        async with roster.updating:
            roster.awake.clear()
            self._leases.stop_clock()
            await roster.settled()
            members = [member for member in roster.members.values() if member.health.alive]
            await asyncio.gather(*(roster.or_replaced(member, member.sleep()) for member in members))

    async def wake(self) -> None:
        """The learner has given its memory back: engines take that of their weights, for the `update` to fill."""
        members = [member for member in self._roster.members.values() if member.asleep and member.health.alive]
        await asyncio.gather(*(self._roster.or_replaced(member, member.wake()) for member in members))

    # --- how many engines

    async def scale(self, num_engines: int) -> None:
        """Adds engines (they join in the background), or lets those go that have the least to lose: they finish their groups."""
        roster = self._roster
        staying = roster.staying()
        roster.join_more(num_engines - len(staying))
        for slot in first_to_go([self._employed(slot) for slot in staying], len(staying) - num_engines):
            if member := roster.dismiss(slot, "scaled down"):
                roster.spawn(roster.drained(member))
        await roster.notify()

    def _employed(self, slot: int) -> Employed:
        member = self._roster.members.get(slot)
        if member is None or not member.health.alive:
            return Employed(slot, EngineState.JOINING, 0.0)
        return Employed(slot, member.health.state, member.tokens)

    async def drain(self, engine_id: str, deadline_s: float) -> None:
        """Takes one engine out of service. What it has not finished by the deadline comes back as `EngineDrained`."""
        known = {member.health.engine_id: member for member in self._roster.members.values()}
        if engine_id not in known:
            raise ValueError(f"drain: there is no engine {engine_id!r}; there are {', '.join(sorted(known)) or 'none'}")
        if member := self._roster.dismiss(known[engine_id].slot, "drained on request"):
            await self._roster.notify()
            await self._roster.drained(member, deadline_s)

    async def stop(self) -> None:
        """Ends every engine; groups in flight are lost with them."""
        await self._roster.stop()

    # --- what it says of itself

    def states(self) -> dict[str, str]:
        return {member.health.engine_id: member.health.state.value for member in self._roster.members.values()}

    def nodes(self) -> dict[str, str]:
        """Node by engine, of those that are placed and live."""
        placed = [member for member in self._roster.members.values() if member.node_id and member.health.alive]
        return {member.health.engine_id: member.node_id for member in placed}

    def signals(self) -> PoolSignals:
        """Of this moment; asks no engine."""
        members, healthy = self._roster.members.values(), self._roster.healthy()
        states = Counter(member.health.state for member in members)
        joining = {*self._roster.joining} | {member.slot for member in members if member.health.state is EngineState.STALE}
        return PoolSignals(
            healthy=len(healthy),
            joining=len(joining),
            draining=states[EngineState.DRAINING],
            suspect=states[EngineState.SUSPECT],
            groups_running=sum(member.window.in_hand for member in members),
            groups_waiting=self._waiting,
            room=sum(member.window.room for member in healthy),
            restarts=self._roster.restarts,
            kv_use=sum(member.kv_use for member in healthy if member.window.in_hand) / max(1, len(healthy)),
        )

    async def activity(self) -> dict[str, int]:
        """Episodes by what they wait for, over all engines that have started; those that do not answer are counted as silent."""
        started = [m for m in self._roster.members.values() if m.health.alive and m.health.state is not EngineState.JOINING]
        answers = await asyncio.gather(*(member.ping() for member in started), return_exceptions=True)
        total: Counter[str] = Counter(generating=0, searching=0, scoring=0, silent=0)
        for answer in answers:
            if isinstance(answer, (TimeoutError, GroupVoided)):
                total["silent"] += 1
            elif isinstance(answer, BaseException):
                raise answer
            else:
                total.update(answer.get("activity", {}))
        return dict(total)

    # --- which engine gets a group

    async def _reserve(self, requests: list[GroupRequest], tokens: float) -> PoolMember:
        roster = self._roster
        self._waiting += 1
        try:
            async with roster.changed:
                await roster.changed.wait_for(lambda: roster.stopping or self._with_room() or not roster.recoverable())
                free = self._with_room()
                if roster.stopping or not free:
                    raise roster.died()
                asked = {request.question.id for request in requests}
                member = free[choose([Candidate(each.tokens, asked <= each.served) for each in free], tokens)]
                member.window.begin()
                member.tokens += tokens
                return member
        finally:
            self._waiting -= 1

    def _with_room(self) -> list[PoolMember]:
        if not self._roster.awake.is_set():
            return []
        return [member for member in self._roster.healthy() if member.window.room]

    async def _until_healthy(self) -> None:
        roster = self._roster
        async with roster.changed:
            await roster.changed.wait_for(lambda: roster.stopping or bool(roster.healthy()) or not roster.recoverable())
            if not roster.healthy():
                raise roster.died()
