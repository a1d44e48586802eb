"""What a vLLM engine is started with, and why."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from actors.config import EngineConfig

if TYPE_CHECKING:
    from vllm import AsyncEngineArgs

# Tokens of one scheduler step on a CPU: prefills a batch of short prompts at once without stalling what decodes for long.
_CPU_BATCHED_TOKENS = 4096

# Only whole blocks are found again. vLLM's 128 on a CPU is longer than most episodes, so no turn ever found its predecessors; with 32,
# the smallest that its kernels like, an episode of several searches takes a quarter less time (64: an eighth).
_CPU_BLOCK_TOKENS = 32

# For glibc: what one layer's update frees serves the next layer instead of going back to the kernel, whose fresh pages cost more
# than the copy into them. A load takes half the time.
_KEEP_FREED_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}


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
        **(_KEEP_FREED_MEMORY if config.on_cpu else {}),
    }


def engine_arguments(model_dir: str, config: EngineConfig, *, needs_text: bool, sleeps: bool) -> AsyncEngineArgs:
    """`sleeps`: it gives its memory to the learner in between, which vLLM must know when it takes it."""
    from vllm import AsyncEngineArgs
    from vllm.config import WeightTransferConfig

    from actors import weight_transfer

    return AsyncEngineArgs(
        model=model_dir,
        load_format="safetensors",  # by default vLLM falls back to pickled weights
        skip_tokenizer_init=not needs_text,
        dtype=config.dtype,
        max_model_len=config.max_model_len,
        max_num_seqs=config.max_num_seqs + 1,  # one seat for the canary when every other is taken
        kv_cache_memory_bytes=config.kv_cache_mib << 20,
        enforce_eager=config.enforce_eager,
        tensor_parallel_size=config.tensor_parallel_size,
        distributed_executor_backend=_executor(config),
        enable_prefix_caching=True,  # the episodes of a group share their prompt, every turn its predecessors
        block_size=_CPU_BLOCK_TOKENS if config.on_cpu else None,
        scheduling_policy="priority",
        # vLLM 0.32 on a CPU dies when the prefill of a request with a seed is cut in two ("CPU Generator does not use
        # offset"), and a refit makes every kept request prefill again: so prefills stay whole there.
        enable_chunked_prefill=False if config.on_cpu else None,
        max_num_batched_tokens=max(config.max_model_len, _CPU_BATCHED_TOKENS) if config.on_cpu else None,
        generation_config="vllm",  # sampling defaults of a checkpoint would bias the behaviour log-probabilities
        logprobs_mode="processed_logprobs",
        weight_transfer_config=WeightTransferConfig(backend=weight_transfer.BACKEND),
        worker_extension_cls=f"{weight_transfer.__name__}.{weight_transfer.WeightReport.__name__}",
        enable_sleep_mode=sleeps,
        disable_log_stats=True,  # vLLM's own loggers; ours below it hears all the same
        enable_log_requests=False,
    )


def _executor(config: EngineConfig) -> str | None:
    """One process less on a CPU: vLLM's default keeps scheduler and worker apart, and both spin while they wait for the other.

    Measured on two cores with a tiny model: a third of the processor time per token, a start of 28 s instead of 51 s, and
    0.8 GB less memory. vLLM insists on two processes there only in order to bind threads, which `engine_environment` turns off.
    """
    if not config.on_cpu or config.tensor_parallel_size > 1:
        return None
    return "vllm.v1.executor.uniproc_executor.UniProcExecutor"
