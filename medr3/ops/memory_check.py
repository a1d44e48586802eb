"""Whether a configuration fits the GPUs that it names, told by `--dry-run` from shapes alone."""

from __future__ import annotations

from dataclasses import dataclass

from learner.memory import GIB, USABLE, MemoryPlan, estimate, estimate_engine, estimate_published, whole_episodes
from learner.model_shape import ModelShape, read_shape
from medr3.config import RunConfig
from medr3.errors import UserError
from tasks.vocabulary import vocabulary


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """What a configuration needs, as lines to read, and one line for each kind of GPU that cannot hold it."""

    table: list[str]
    problems: list[str]


def report_memory(config: RunConfig) -> MemoryReport:
    """The memory of every kind of process."""
    shape = model_shape(config)
    engine = config.rollout.engine
    learner, *offloaded = estimate(
        shape, config.learner, engine.max_model_len, config.rollout.group_size * config.rollout.groups_per_step
    )
    rollout = estimate_engine(
        shape,
        dtype=engine.dtype,
        on_gpu=not engine.on_cpu,
        tensor_parallel=engine.tensor_parallel_size,
        kv_cache_mib=engine.kv_cache_mib,
        max_num_seqs=engine.max_num_seqs,
    )
    engines = config.rollout.num_engines * engine.tensor_parallel_size
    plans = [(config.learner.workers, learner), *((config.learner.workers, plan) for plan in offloaded), (engines, rollout)]
    episodes = whole_episodes(
        shape,
        dtype=engine.dtype,
        tensor_parallel=engine.tensor_parallel_size,
        kv_cache_mib=engine.kv_cache_mib,
        length=engine.max_model_len,
    )
    cards = (
        (learner, config.learner.gpus_per_worker, config.hardware.learner_gpu_gib),
        (rollout, 0 if engine.on_cpu else engine.gpus, config.hardware.engine_gpu_gib),
    )
    # On a CPU nothing is refused here: the preflight looks at the memory that is free.
    on_gpus = [(plan, gib * min(share, 1)) for plan, share, gib in cards if share > 0]
    problems = [_too_small(config, plan, gib) for plan, gib in on_gpus if not plan.fits(gib)]
    if not episodes:
        problems.append(
            f"engine: a KV cache of {engine.kv_cache_mib} MiB does not hold one episode of {engine.max_model_len} tokens: raise"
            " rollout.engine.kv_cache_mib or lower rollout.engine.max_model_len"
        )
    name = config.model.path.name if config.model.path is not None else "the cold-started model"
    table = [
        f"memory, estimated for {name} of {shape.parameters:,} parameters:",
        *(line for count, plan in plans for line in _times(count, plan)),
        *_times(1, estimate_published(shape, config.learner.dtype)),
        f"the KV cache of one engine holds {episodes:,} episodes of {engine.max_model_len:,} tokens at once",
    ]
    return MemoryReport(table, problems)


def model_shape(config: RunConfig) -> ModelShape:
    """The shape of the model that the configuration trains."""
    if config.model.path is not None:
        try:
            return read_shape(config.model.path)
        except ValueError as error:
            raise UserError(f"model.path: {error}") from None
    start = config.cold_start
    return ModelShape.from_config(
        {
            "model_type": "qwen2", "vocab_size": len(vocabulary()), "hidden_size": start.hidden_size,
            "intermediate_size": start.ffn_size, "num_hidden_layers": start.layers, "num_attention_heads": start.heads,
            "tie_word_embeddings": True,
        }
    )  # fmt: skip


def _too_small(config: RunConfig, plan: MemoryPlan, gib: float) -> str:
    changes = (_learner_changes if plan.place.startswith("learner") else _engine_changes)(config, plan)
    return (
        f"{plan.place}: {plan.total / GIB:.1f} GiB are needed, and of {gib:g} GiB {USABLE * gib:.1f} can be used; most of it is"
        f" for {plan.largest} ({plan.parts[plan.largest] / GIB:.1f} GiB): {' or '.join(changes)}"
    )


def _learner_changes(config: RunConfig, plan: MemoryPlan) -> list[str]:
    """What would make the largest part smaller and is not set yet."""
    learner, longest = config.learner, config.rollout.engine.max_model_len
    changes = []
    if plan.largest == "activations":
        if not learner.activation_checkpointing:
            changes.append("set learner.activation_checkpointing to true")
        if learner.microbatch_tokens > longest:
            changes.append(f"lower learner.microbatch_tokens, down to the longest episode of {longest}")
        else:
            changes.append("lower rollout.engine.max_model_len, for an episode is never cut")
    else:
        changes.append("raise learner.workers")
        if learner.lora is None:
            changes.append("set learner.lora")
        if not learner.cpu_offload:
            changes.append("set learner.cpu_offload to true")
    return changes


def _engine_changes(config: RunConfig, plan: MemoryPlan) -> list[str]:
    return ["lower rollout.engine.kv_cache_mib"] * (plan.largest == "KV cache") + ["raise rollout.engine.tensor_parallel_size"]


def _times(count: int, plan: MemoryPlan) -> list[str]:
    first, *parts = plan.table()
    return [f"{count:>3} × {first}", *("      " + line for line in parts)]
