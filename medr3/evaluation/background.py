"""Reports on engines of their own, while training goes on.

::

    order(stage, publication) ─▶ held: the learner cannot overwrite its file ─▶ queue ─▶ update ▶ ask every phase ▶ deliver ─▶ next
            └─ waits while WAITING_ORDERS are queued already

Every order is delivered exactly once: with its scores, or with the reason why there are none. A report that fails ends no run.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from actors.failures import PoolDied
from actors.messages import GroupVoided
from actors.pool import RolloutPool
from medr3.config import RunConfig
from medr3.evaluation.heldout import Examiner, Score
from tasks.world import Universe
from trajectories.publication import Publication, WeightAck
from trajectories.schema import WeightVersion

WAITING_ORDERS = 2  # each holds a copy of the weights in shared memory
HELD = "held"  # below the learner's folder of weights, and removed with it


@dataclass(frozen=True)
class Report:
    """What became of one order."""

    stage: str
    version: WeightVersion
    scores: dict[str, Score] = field(default_factory=dict)  # by phase, in its own setting
    without_retrieval: dict[str, Score] = field(default_factory=dict)  # by phase, where the book was closed as well
    failure: str = ""


@dataclass(frozen=True)
class _Ordered:
    stage: str
    weights: HeldWeights
    closed_book: bool


class BackgroundReports:
    """Lives in the driver's event loop beside the training pool, and shares nothing with it but the retrieval service."""

    def __init__(
        self,
        config: RunConfig,
        universe: Universe,
        retrieval_handle: Any,
        deliver: Callable[[Report], None],
        on_ack: Callable[[WeightAck], None] = lambda ack: None,
    ) -> None:
        """`deliver` hears of every order once. Acks are the evaluation engines' own: no promise about training rests on them."""
        changes = {"num_engines": config.evaluation.engines, "autoscale": None, "colocated": False}
        self._pool = RolloutPool(config.rollout.model_copy(update=changes), retrieval_handle, config.retrieval, on_ack=on_ack)
        self._phases = config.curriculum.phases
        self._examiner = Examiner(self._pool, config, universe)
        self._deliver = deliver
        self._queue: asyncio.Queue[_Ordered] = asyncio.Queue(WAITING_ORDERS)
        self._worker: asyncio.Task[None] | None = None
        self._in_use: HeldWeights | None = None

    async def start(self, model_dir: str, publication: Publication | Awaitable[Publication]) -> None:
        """Starts the engines as the training pool starts its own; both may await one publication."""
        await self._pool.start(model_dir, publication)
        self._worker = asyncio.create_task(self._work())

    async def order(self, stage: str, publication: Publication, *, closed_book: bool = False) -> None:
        """Returns once the order is queued. Call it before the next step is ordered of the learner: until then the file is there."""
        await self._queue.put(_Ordered(stage, HeldWeights(publication), closed_book))

    async def finish(self) -> None:
        """Waits until every order was delivered."""
        await self._queue.join()

    async def stop(self) -> None:
        """Ends the engines. Orders that still wait are delivered as failed."""
        if self._worker is not None:
            self._worker.cancel()
            with suppress(asyncio.CancelledError):
                await self._worker
        while not self._queue.empty():
            ordered = self._queue.get_nowait()
            self._ended(ordered, Report(ordered.stage, ordered.weights.publication.version, failure="the run ended before"))
            ordered.weights.release()
        await self._pool.stop()
        if self._in_use is not None:
            self._in_use.release()

    async def _work(self) -> None:
        while True:
            ordered = await self._queue.get()
            report = Report(ordered.stage, ordered.weights.publication.version, failure="the run ended meanwhile")
            try:
                report = await self._measured(ordered)
            finally:
                self._ended(ordered, report)

    async def _measured(self, ordered: _Ordered) -> Report:
        publication = ordered.weights.publication
        try:
            await self._refit(ordered.weights)
            scores = {phase.name: await self._examiner.report(phase) for phase in self._phases}
            closed = {
                phase.name: await self._examiner.report(phase, retrieval=False)
                for phase in self._phases
                if ordered.closed_book and phase.retrieval
            }
            return Report(ordered.stage, publication.version, scores, closed)
        except (PoolDied, GroupVoided) as error:
            return Report(ordered.stage, publication.version, failure=" ".join(str(error).split()))

    async def _refit(self, weights: HeldWeights) -> None:
        """An engine that is replaced during a report loads its file again, so it is let go only when the next one is in use."""
        before, self._in_use = self._in_use, weights
        await self._pool.update(weights.publication)
        if before is not None:
            before.release()

    def _ended(self, ordered: _Ordered, report: Report) -> None:
        self._queue.task_done()
        self._deliver(report)


class HeldWeights:
    """A published file that stays as it is, though its publisher keeps but a few versions and writes new ones into old memory.

    The link keeps its name; the open file keeps its content, because a publisher overwrites only what nobody has open. Nothing is
    copied. Where this machine does not see the file, it stays where it is, and an engine that finds another refuses it.
    """

    def __init__(self, publication: Publication) -> None:
        path = Path(publication.path)
        self._link = path.parent / HELD / path.name
        self._file = None
        self.publication = publication
        with suppress(FileNotFoundError):
            self._file = path.open("rb")
            self._link.parent.mkdir(exist_ok=True)
            self._link.unlink(missing_ok=True)
            os.link(path, self._link)
            self.publication = replace(publication, path=str(self._link))

    def release(self) -> None:
        """The publisher may have its memory back."""
        if self._file is not None:
            self._file.close()
            self._link.unlink(missing_ok=True)
