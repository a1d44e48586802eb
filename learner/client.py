"""The driver's side of the learner: starts Ray Train's workers, gives them orders, and notices when they end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from learner.checkpoint_folder import complete
from learner.config import LearnerConfig
from learner.exchange import Exchange, Reply
from learner.messages import Answer, Checkpoint, LearnerDied, NewPhase, Order, Start, Step, StepResult, Stop
from trajectories.publication import Publication
from trajectories.schema import WeightVersion

if TYPE_CHECKING:
    import pyarrow as pa

# The exchange answers by the deadline of its own; this much later the exchange itself is taken for lost.
GRACE_S = 10.0
# Ray Train looks after its workers every 2 s, then frees their places; workers poll the exchange every 10 s.
END_S = 30.0


class LearnerClient:
    """Orders for the learner, one at a time; every call waits for its answer, and raises `LearnerDied` where none will come.

    `TorchTrainer.fit()` runs in a thread and returns only when the workers end. Nothing is restarted here: the run's manifest
    decides what a restart resumes from.
    """

    def __init__(self, config: LearnerConfig, run_id: str, spell_canary: Callable[[], list[int]]) -> None:
        """`spell_canary` gives the canary's token ids; the workers call it, for they have imported a tokenizer anyway."""
        self.run_id = run_id
        self._config, self._spell_canary = config, spell_canary
        self._exchange: Any = None
        self._ended: asyncio.Future[str] | None = None

    async def start(self, model_dir: Path, version: WeightVersion, checkpoint: Path | None, storage: Path) -> Publication:
        """Starts the workers from the model, or from a checkpoint of any number of workers, and publishes `version`."""
        if self._ended is not None:
            raise RuntimeError("this learner was started before: make another LearnerClient")
        if not (model_dir / "config.json").is_file():
            raise FileNotFoundError(f"no model in {model_dir}: it has no config.json")
        # Where the driver is: what takes no resources, Ray puts on any node, also on one that may go at two minutes' notice.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._exchange = Exchange.options(scheduling_strategy=here).remote(self._config.workers)
        self._ended = asyncio.get_running_loop().create_future()
        arguments = (asyncio.get_running_loop(), self._ended, model_dir.resolve(), storage.resolve())
        threading.Thread(target=self._fit, args=arguments, name="learner-fit", daemon=True).start()
        order = Start(version, str(checkpoint.resolve()) if checkpoint is not None else None)
        return cast(Publication, await self._carry_out(order, self._config.start_timeout_s))

    async def step(
        self, tables: list[ray.ObjectRef[pa.Table]], step: int, version: WeightVersion, learning_rate: float
    ) -> StepResult:
        """Trains on the groups in `tables` and publishes the outcome as `version`."""
        return cast(StepResult, await self._carry_out(Step(tables, step, version, learning_rate)))

    async def checkpoint(self, folder: Path) -> Coroutine[Any, Any, None]:
        """Returns as soon as every rank has a copy of its tensors: the next step may be ordered.

        What it returns is awaited for the rest: it ends when `folder`, which `start` takes, is complete under its name.
        """
        folder = folder.resolve()
        await self._carry_out(Checkpoint(str(folder)))
        return self._written(folder)

    async def _written(self, folder: Path) -> None:
        timeout_s = self._config.step_timeout_s
        written = _heard(self._exchange.written.remote(str(folder), timeout_s))
        await self._answered("Checkpoint", written, timeout_s)
        await asyncio.to_thread(complete, folder, self._config.workers)

    async def new_phase(self, *, reset_optimizer: bool, refresh_reference: bool) -> None:
        """Forgets AdamW's moments, and makes the policy as it now is the reference, where the new phase's rules say so."""
        if reset_optimizer or refresh_reference:
            await self._carry_out(NewPhase(reset_optimizer, refresh_reference))

    async def restore(self, checkpoint: Path, version: WeightVersion) -> Publication:
        """Goes back to a checkpoint and publishes it as `version`, which must be of a new generation."""
        return cast(Publication, await self._carry_out(Start(version, str(checkpoint.resolve()))))

    async def stop(self) -> None:
        """Ends the workers and removes the published weights. A learner that is dead already is no error."""
        from learner.publishing import remove_weights, weights_folder

        if self._ended is None:
            return
        if not self._ended.done():
            with suppress(LearnerDied):
                await self._carry_out(Stop())
        ray.kill(self._exchange)  # workers that did not get the order end when they next ask for one
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._ended), END_S)
        remove_weights(weights_folder(self._config.weights_folder, self.run_id))

    async def _carry_out(self, order: Order, timeout_s: float | None = None) -> Answer:
        if self._ended is None:
            raise RuntimeError(f"{type(order).__name__} was ordered before start()")
        timeout_s = timeout_s or self._config.step_timeout_s
        return await self._answered(type(order).__name__, _heard(self._ask(order, timeout_s)), timeout_s)

    async def _answered(self, name: str, asked: Awaitable[Reply], timeout_s: float) -> Answer:
        """The exchange's answer; `LearnerDied` where the workers end, or nothing is heard of them."""
        assert self._ended is not None, "only a started learner is asked"
        reply: asyncio.Future[Any] = asyncio.ensure_future(asked)
        try:
            await asyncio.wait(
                [reply, cast("asyncio.Future[Any]", self._ended)],
                timeout=timeout_s + GRACE_S,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if reply.done():
                answer, failure = reply.result()
                if failure:
                    raise LearnerDied(f"{name}: {failure}")
                return answer
        finally:
            reply.cancel()
        if not self._ended.done():
            raise LearnerDied(f"{name}: the exchange did not answer within {timeout_s + GRACE_S:.0f} s")
        raise LearnerDied(f"{name}: {await self._exchange.failure.remote() or self._ended.result()}")

    async def _ask(self, order: Order, timeout_s: float) -> Reply:
        number = await self._exchange.put.remote(order)
        return cast(Reply, await self._exchange.reply.remote(number, timeout_s))

    def _fit(self, loop: asyncio.AbstractEventLoop, ended: asyncio.Future[str], model_dir: Path, storage: Path) -> None:
        """In its own thread, so that torch is imported here and the event loop stays free."""
        try:
            from learner.launch import make_trainer

            make_trainer(self._config, self.run_id, model_dir, self._spell_canary, self._exchange, storage).fit()
            reason = "the workers ended as if told to stop"
        except BaseException as error:  # a thread has nobody to raise to: the reason travels as text
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"  # one line; tracebacks are in Ray's logs
        if not loop.is_closed():
            loop.call_soon_threadsafe(ended.set_result, reason)


async def _heard(call: Awaitable[Reply]) -> Reply:
    """A call of the exchange; one that is lost or refuses an order says why."""
    try:
        return await call
    except RayError as error:
        return Reply(failure=str(getattr(error, "cause", error)))
