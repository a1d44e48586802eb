"""One vLLM engine that samples only from weights that were proved to have arrived."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from actors.config import EngineConfig
from actors.engine_start import engine_arguments, engine_environment
from actors.failures import EngineFenced, EngineLost
from trajectories.publication import Canary, Publication, WeightAck
from trajectories.schema import VersionSpan, WeightVersion

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM

    from actors.engine_load import EngineLoad

T = TypeVar("T")

LOOK_FOR_DEATH_S = 0.25  # vLLM notices within milliseconds; asking it costs nothing

# vLLM schedules smaller numbers first: the canary is computed in the first step after an update, before any kept request.
_CANARY_PRIORITY = -1

# vLLM's names for what a sleeping engine has given back. The weights come first: they are loaded before any cache is needed.
_MEMORY = ["weights", "kv_cache"]
_DISCARD = 2  # level of sleep: nothing is kept for waking up, because new weights are transferred anyway


class Completion(NamedTuple):
    """What one request sampled: ids, their log-probabilities as sampled from, and which weights sampled which of them."""

    token_ids: list[int]
    logprobs: list[float]
    version_spans: list[VersionSpan]


class PolicyEngine:
    """Samples tokens, takes new weights while requests are in flight, and refuses to work on weights it could not verify.

    An update is pause(keep, clear cache) → transfer → commit version → canary → open. vLLM cannot run a request while paused,
    so the canary is queued first, at the highest priority, and the engine resumes with the *gate* closed: nothing new is sent
    and nothing finished is handed out until the canary's verdict. After a bad verdict every request that may have seen the
    doubtful weights is aborted, and the engine is fenced until a later update succeeds.

    An engine that shares its hardware with the learner sleeps meanwhile: sleep ─▶ wake ─▶ update. It samples nothing from the
    first on, and again only after the last, because on a GPU its weights are gone until they are transferred anew.
    """

    def __init__(self, engine_id: str, config: EngineConfig, canary_tolerance: float, *, sleeps: bool = False) -> None:
        self.engine_id = engine_id
        self.version: WeightVersion | None = None  # None while fenced
        self.mend_tied_output = True  # off only in the test that shows what the canary is for
        self.drop_kept_cache = True  # off only in the test that shows that kept requests need it
        self._gives_memory_back = sleeps and not config.on_cpu  # on a CPU vLLM's sleep does nothing
        self._asleep: list[str] = []  # which memory it has given back, in the order in which it takes it again
        self._config = config
        self._tolerance = canary_tolerance
        self._llm: AsyncLLM | None = None
        self._fence = "it has not verified any weights yet"
        self._failed_updates = 0
        self._gate = asyncio.Event()
        self._gate.set()
        self._updating = asyncio.Lock()
        self._in_flight: set[str] = set()
        self._kept: set[str] = set()  # those that the last update found in flight
        self._load: EngineLoad | None = None
        self._canaries = 0

    async def start(self, model_dir: str, *, needs_text: bool) -> None:
        """Starts vLLM; `needs_text` loads its detokeniser, which stop strings need and stop tokens do not."""
        os.environ.update(engine_environment(self._config))
        from actors.engine_load import EngineLoad, ScheduledLLM

        arguments = engine_arguments(model_dir, self._config, needs_text=needs_text, sleeps=self._gives_memory_back)
        self._llm = ScheduledLLM.from_engine_args(arguments, stat_loggers=[EngineLoad])
        self._load = self._llm.load
        await self._warm_up()

    async def _warm_up(self) -> None:
        """The first forward pass takes seconds on a CPU; it belongs to the start, not to the first update's deadline."""
        from vllm import SamplingParams

        await self._run("warm-up", [0, 0], SamplingParams(max_tokens=1, logprobs=0, prompt_logprobs=0, detokenize=False))

    async def generate(
        self,
        request_id: str,
        prompt_ids: Sequence[int],
        *,
        max_tokens: int,
        temperature: float,
        seed: int,
        stop_token_ids: Sequence[int],
        stop_strings: Sequence[str] = (),
        forbidden_token_ids: Sequence[int] = (),
    ) -> Completion:
        """Samples one turn. Raises `EngineFenced` rather than hand out a token that unverified weights may have sampled.

        Forbidden tokens have no probability at all, and the others' log-probabilities are those without them.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        parameters = SamplingParams(
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
            stop_token_ids=list(stop_token_ids),
            stop=list(stop_strings) or None,
            include_stop_str_in_output=True,
            ignore_eos=True,  # the end of text is among the stop tokens
            detokenize=bool(stop_strings),
            logprobs=0,  # the sampled token's alone
            logit_bias={token: float("-inf") for token in forbidden_token_ids} or None,
            flat_logprobs=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
            skip_clone=True,  # nobody else holds it
        )
        await self._gate.wait()
        self._refuse_if_fenced()
        failed_updates = self._failed_updates
        self._in_flight.add(request_id)
        try:
            output = await self._run(request_id, prompt_ids, parameters)
        finally:
            self._ended(request_id)
        await self._gate.wait()
        if self._failed_updates != failed_updates:
            raise EngineFenced(f"engine {self.engine_id} sampled {request_id} across an update that failed: {self._fence}")
        return _completion(output, prompt_ids, self.engine_id)

    async def update(self, publication: Publication) -> WeightAck:
        """Loads and proves new weights. Never raises on bad weights: the acknowledgement says what was wrong."""
        async with self._updating:
            return await self._unless_lost(self._update(publication))

    async def _update(self, publication: Publication) -> WeightAck:
        clock = _Clock()
        self._gate.clear()
        checksum, difference, reason = "", float("nan"), "the update was broken off"
        try:
            await self._wake_weights()
            await self._pause(clear_cache=self.drop_kept_cache)
            clock.lap("pause")
            checksum, stages = await self._transfer(publication)
            clock.lap("calls", of_which=stages)
            difference = await self._canary_difference(publication.canary)
            clock.lap("canary")
            passed = difference <= self._tolerance
            reason = "" if passed else f"canary differs by {difference:.3g}, allowed is {self._tolerance:.3g}"
        except EngineLost:
            raise
        except Exception as error:  # whatever went wrong, the weights are not proved
            reason = f"{type(error).__name__}: {error}"
        finally:
            await self._open(publication.version, reason)
        clock.lap("open")
        return WeightAck(
            self.engine_id,
            publication.version,
            not reason,
            checksum,
            difference,
            reason,
            {**clock.laps, "total": clock.total()},
        )

    async def sleep(self) -> None:
        """Samples nothing until the next update; requests in flight are kept. On a GPU its memory is the learner's until then."""
        async with self._updating:
            await self._unless_lost(self._sleep())

    async def _sleep(self) -> None:
        self._gate.clear()
        if not self._gives_memory_back:
            await self._pause(clear_cache=False)
        elif not self._asleep:
            await self._engine().sleep(_DISCARD, mode="keep")
            self._asleep = list(_MEMORY)
            self._note_forced()

    async def wake(self) -> None:
        """Takes back the memory of its weights, which the next update fills; until that has proved them, nothing is sampled."""
        async with self._updating:
            await self._unless_lost(self._wake_weights())

    def load(self) -> dict[str, float | int]:
        """How full the KV cache is, from 0 to 1, and how many requests had to leave it since the engine started."""
        load = self._heard()
        return {"kv_use": load.kv_use, "preemptions": load.preemptions, "recomputed": load.recomputed}

    def take_peak(self) -> float:
        """The fullest that the KV cache was since this was asked before."""
        return self._heard().take_peak()

    async def _unless_lost(self, work: Coroutine[Any, Any, T]) -> T:
        """vLLM leaves a call unanswered for ever that its process died under: so that is looked for meanwhile."""
        doing = asyncio.ensure_future(work)
        doing.add_done_callback(_heed)
        try:
            while not doing.done():
                await asyncio.wait([doing], timeout=LOOK_FOR_DEATH_S)
                self.raise_if_lost()
            return doing.result()
        except EngineLost:
            doing.cancel()  # and not awaited: nobody answers what it does at its end either
            self._gate.set()  # those who wait for it find that the engine is lost
            raise
        except asyncio.CancelledError:
            doing.cancel()
            await asyncio.wait([doing])
            raise

    def raise_if_lost(self) -> None:
        if self._engine().errored:
            raise EngineLost(f"engine {self.engine_id}: its vLLM process died")

    def stop(self) -> None:
        """Ends the engine process."""
        if self._llm is not None:
            self._llm.shutdown(timeout=0)
            self._llm = None

    async def _pause(self, *, clear_cache: bool) -> None:
        """Nothing is sampled from here on; requests in flight are kept."""
        await self._engine().pause_generation(mode="keep", clear_cache=clear_cache)
        if clear_cache:
            self._note_forced()

    def _note_forced(self) -> None:
        """What loses its cache to an update is no sign that memory is short."""
        self._kept = set(self._in_flight)
        self._heard().expect_forced()

    def _ended(self, request_id: str) -> None:
        self._in_flight.discard(request_id)
        self._kept.discard(request_id)
        if not self._kept:
            self._heard().forget_forced()
        if not self._in_flight:
            self._heard().idle()

    async def _wake_weights(self) -> None:
        if self._asleep == _MEMORY:
            await self._engine().wake_up(_MEMORY[:1])
            self._asleep = _MEMORY[1:]

    async def _resume(self) -> None:
        """vLLM goes on by itself as soon as a sleeping engine has all of its memory again."""
        if self._asleep:
            await self._engine().wake_up(self._asleep)
            self._asleep = []
        else:
            await self._engine().resume_generation()

    async def _transfer(self, publication: Publication) -> tuple[str, dict[str, float]]:
        """Every worker loads the file; what they read must be the same, and what was announced. The slowest one's seconds."""
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        engine = self._engine()
        await engine.start_weight_update()
        update = {"path": publication.path, "checksum": publication.checksum, "mend_tied_output": self.mend_tied_output}
        await engine.update_weights(WeightTransferUpdateRequest(update))
        await engine.finish_weight_update(weight_version=str(publication.version))
        received = await engine.collective_rpc("received_weights")
        checksums = {checksum for checksum, _ in received}
        if checksums != {publication.checksum}:
            raise ValueError(f"the workers read {sorted(checksums)}, announced was {publication.checksum}")
        return publication.checksum, max((seconds for _, seconds in received), key=lambda seconds: sum(seconds.values()))

    async def _canary_difference(self, canary: Canary) -> float:
        """Resumes with the canary first in the queue; the largest difference of its log-probabilities to the learner's."""
        from vllm import SamplingParams
        from vllm.inputs.engine import tokens_input
        from vllm.sampling_params import RequestOutputKind

        if len(canary.token_ids) < 2 or len(canary.logprobs) != len(canary.token_ids) - 1:
            raise ValueError(
                f"a canary of {len(canary.token_ids)} tokens and {len(canary.logprobs)} log-probabilities proves nothing"
            )
        self._canaries += 1
        parameters = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            prompt_logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            ignore_eos=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        queue = await self._engine().add_request(
            f"canary-{self._canaries}", tokens_input(list(canary.token_ids)), parameters, priority=_CANARY_PRIORITY
        )
        await self._resume()
        output: Any = await queue.get()
        seen = output.prompt_logprobs.logprobs
        if len(seen) != len(canary.logprobs):
            raise ValueError(f"the canary came back with {len(seen)} log-probabilities instead of {len(canary.logprobs)}")
        return max(_absolute(a - b) for a, b in zip(seen, canary.logprobs, strict=True))

    async def _open(self, version: WeightVersion, reason: str) -> None:
        """Ends an update: the engine goes on under verified weights, or is fenced with nothing left in flight."""
        self._fence, self.version = reason, None if reason else version
        try:
            if reason:
                self._failed_updates += 1
                await self._engine().abort(list(self._in_flight))
                await self._resume()
        finally:
            self._gate.set()

    async def _run(self, request_id: str, prompt_ids: Sequence[int], parameters: Any) -> RequestOutput:
        from vllm.inputs.engine import tokens_input
        from vllm.v1.engine.exceptions import EngineDeadError

        final: RequestOutput | None = None
        try:
            async for output in self._engine().generate(tokens_input(list(prompt_ids)), parameters, request_id):
                final = output
        except EngineDeadError as error:
            raise EngineLost(f"engine {self.engine_id}: its vLLM process died") from error
        assert final is not None
        return final

    def _refuse_if_fenced(self) -> None:
        if self._fence:
            raise EngineFenced(f"engine {self.engine_id} takes no work: {self._fence}")

    def _heard(self) -> EngineLoad:
        if self._load is None:
            raise EngineLost(f"engine {self.engine_id} is not running")
        return self._load

    def _engine(self) -> AsyncLLM:
        if self._llm is None:
            raise EngineLost(f"engine {self.engine_id} is not running")
        return self._llm


def _completion(output: RequestOutput, prompt_ids: Sequence[int], engine_id: str) -> Completion:
    sampled = output.outputs[0]
    if sampled.finish_reason == "abort":
        raise EngineFenced(f"engine {engine_id} aborted {output.request_id}")
    if list(output.prompt_token_ids or ()) != list(prompt_ids):
        raise RuntimeError(f"engine {engine_id} answered {output.request_id} for another prompt than was sent")
    spans = [VersionSpan(*WeightVersion.parse(span.version), span.start, span.end) for span in sampled.weight_versions or ()]
    return Completion(list(sampled.token_ids), list(sampled.logprobs.logprobs), spans)


def _heed(task: asyncio.Future[Any]) -> None:
    """So that asyncio does not tell of an error that nobody asks for: the engine's death is told instead."""
    if not task.cancelled():
        task.exception()


def _absolute(difference: float) -> float:
    """NaN sorts above everything, because `max` would otherwise lose it."""
    return float("inf") if difference != difference else abs(difference)


class _Clock:
    """Seconds per stage of an update."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._begun = self._last = time.perf_counter()

    def lap(self, name: str, of_which: dict[str, float] | None = None) -> None:
        """Stages that another process timed within this one are told apart from it: laps add up to the total."""
        now = time.perf_counter()
        within = of_which or {}
        self.laps |= {**within, name: now - self._last - sum(within.values())}
        self._last = now

    def total(self) -> float:
        return time.perf_counter() - self._begun
