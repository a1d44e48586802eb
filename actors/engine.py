"""One vLLM engine that samples only from weights that were proved to have arrived."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from actors.config import EngineConfig
from actors.failures import EngineFenced, EngineLost
from trajectories.publication import Canary, Publication, WeightAck
from trajectories.schema import VersionSpan, WeightVersion

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM

# vLLM schedules smaller numbers first: the canary is computed in the first step after an update, before any kept request.
_CANARY_PRIORITY = -1

# Tokens of one scheduler step on a CPU: prefills a batch of short prompts at once without stalling what decodes for long.
_CPU_BATCHED_TOKENS = 4096

# For glibc: what one layer's update frees serves the next layer instead of going back to the kernel, whose fresh pages cost more
# than the copy into them. A load takes half the time.
_KEEP_FREED_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}


class Completion(NamedTuple):
    """What one request sampled: ids, their log-probabilities as sampled from, and which weights sampled which of them."""

    token_ids: list[int]
    logprobs: list[float]
    version_spans: list[VersionSpan]


def engine_environment(config: EngineConfig) -> dict[str, str]:
    """Variables that must be set before vLLM is imported. The engine's own process inherits them."""
    return {
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # the actor has threads, and a fork of those may hang
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
        # Binding would put every engine, and the learner, on the same first cores.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(config.cpu_threads),
        "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads took four times the processor time, from the learner as well
        # Otherwise the first log-probability compiles a helper even in eager mode: seconds, and it needs a C++ compiler.
        **({"TORCHDYNAMO_DISABLE": "1"} if config.enforce_eager else {}),
        **({} if config.gpus else _KEEP_FREED_MEMORY),
    }


class PolicyEngine:
    """Samples tokens, takes new weights while requests are in flight, and refuses to work on weights it could not verify.

    An update is pause(keep, clear cache) → transfer → commit version → canary → open. vLLM cannot run a request while paused,
    so the canary is queued first, at the highest priority, and the engine resumes with the *gate* closed: nothing new is sent
    and nothing finished is handed out until the canary's verdict. After a bad verdict every request that may have seen the
    doubtful weights is aborted, and the engine is fenced until a later update succeeds.
    """

    def __init__(self, engine_id: str, config: EngineConfig, canary_tolerance: float) -> None:
        self.engine_id = engine_id
        self.version: WeightVersion | None = None  # None while fenced
        self.mend_tied_output = True  # off only in the test that shows what the canary is for
        self._config = config
        self._tolerance = canary_tolerance
        self._llm: AsyncLLM | None = None
        self._fence = "it has not verified any weights yet"
        self._failed_updates = 0
        self._gate = asyncio.Event()
        self._gate.set()
        self._updating = asyncio.Lock()
        self._in_flight: set[str] = set()
        self._canaries = 0

    async def start(self, model_dir: str, *, needs_text: bool) -> None:
        """Starts vLLM; `needs_text` loads its detokeniser, which stop strings need and stop tokens do not."""
        os.environ.update(engine_environment(self._config))
        from vllm import AsyncEngineArgs
        from vllm.config import WeightTransferConfig
        from vllm.v1.engine.async_llm import AsyncLLM

        from actors import weight_transfer

        arguments = AsyncEngineArgs(
            model=model_dir,
            skip_tokenizer_init=not needs_text,
            dtype=self._config.dtype,
            max_model_len=self._config.max_model_len,
            max_num_seqs=self._config.max_num_seqs + 1,  # one seat for the canary when every other is taken
            kv_cache_memory_bytes=self._config.kv_cache_mib << 20,
            enforce_eager=self._config.enforce_eager,
            tensor_parallel_size=self._config.tensor_parallel_size,
            distributed_executor_backend=_executor(self._config),
            enable_prefix_caching=True,  # the episodes of a group share their prompt, every turn its predecessors
            scheduling_policy="priority",
            # vLLM 0.32 on a CPU dies when the prefill of a request with a seed is cut in two ("CPU Generator does not use
            # offset"), and a refit makes every kept request prefill again: so prefills stay whole there.
            enable_chunked_prefill=None if self._config.gpus else False,
            max_num_batched_tokens=None if self._config.gpus else max(self._config.max_model_len, _CPU_BATCHED_TOKENS),
            generation_config="vllm",  # sampling defaults of a checkpoint would bias the behaviour log-probabilities
            logprobs_mode="processed_logprobs",
            weight_transfer_config=WeightTransferConfig(backend=weight_transfer.BACKEND),
            worker_extension_cls=f"{weight_transfer.__name__}.{weight_transfer.WeightReport.__name__}",
            disable_log_stats=True,
            enable_log_requests=False,
        )
        self._llm = AsyncLLM.from_engine_args(arguments)
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
    ) -> Completion:
        """Samples one turn. Raises `EngineFenced` rather than hand out a token that unverified weights may have sampled."""
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
            flat_logprobs=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        await self._gate.wait()
        self._refuse_if_fenced()
        failed_updates = self._failed_updates
        self._in_flight.add(request_id)
        try:
            output = await self._run(request_id, prompt_ids, parameters)
        finally:
            self._in_flight.discard(request_id)
        await self._gate.wait()
        if self._failed_updates != failed_updates:
            raise EngineFenced(f"engine {self.engine_id} sampled {request_id} across an update that failed: {self._fence}")
        return _completion(output, prompt_ids, self.engine_id)

    async def update(self, publication: Publication) -> WeightAck:
        """Loads and proves new weights. Never raises on bad weights: the acknowledgement says what was wrong."""
        async with self._updating:
            clock = _Clock()
            self._gate.clear()
            checksum, difference, reason = "", float("nan"), "the update was broken off"
            try:
                await self._engine().pause_generation(mode="keep", clear_cache=True)
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

    def raise_if_lost(self) -> None:
        if self._engine().errored:
            raise EngineLost(f"engine {self.engine_id}: its vLLM process died")

    def stop(self) -> None:
        """Ends the engine process."""
        if self._llm is not None:
            self._llm.shutdown(timeout=0)
            self._llm = None

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
        await self._engine().resume_generation()
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
                await self._engine().resume_generation()
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

    def _engine(self) -> AsyncLLM:
        if self._llm is None:
            raise EngineLost(f"engine {self.engine_id} is not running")
        return self._llm


def _executor(config: EngineConfig) -> str | None:
    """One process less on a CPU: vLLM's default keeps scheduler and worker apart, and both spin while they wait for the other.

    Measured on two cores with a tiny model: a third of the processor time per token, a start of 28 s instead of 51 s, and
    0.8 GB less memory. vLLM insists on two processes there only in order to bind threads, which `engine_environment` turns off.
    """
    if config.gpus or config.tensor_parallel_size > 1:
        return None
    return "vllm.v1.executor.uniproc_executor.UniProcExecutor"


def _completion(output: RequestOutput, prompt_ids: Sequence[int], engine_id: str) -> Completion:
    sampled = output.outputs[0]
    if sampled.finish_reason == "abort":
        raise EngineFenced(f"engine {engine_id} aborted {output.request_id}")
    if list(output.prompt_token_ids or ()) != list(prompt_ids):
        raise RuntimeError(f"engine {engine_id} answered {output.request_id} for another prompt than was sent")
    spans = [VersionSpan(*WeightVersion.parse(span.version), span.start, span.end) for span in sampled.weight_versions or ()]
    return Completion(list(sampled.token_ids), list(sampled.logprobs.logprobs), spans)


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
