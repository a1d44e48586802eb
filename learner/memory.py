"""How much memory a training needs, told before anything starts. Pure arithmetic from shapes; docs/memory.md compares it to reality.

A part that depends on the moment of a step counts as it is at the moment that needs most::

    forward ▶ "begins":  activations of all layers, a chunk of logits, the output layer's gradient
            ▶ "within":  activations, those of one layer made again, gradients on their way to the ranks that own them
            ▶ "ends":    the gradients of embedding and output layer, all at once
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from learner.algorithms import resolve
from learner.config import LearnerConfig
from learner.model_shape import ModelShape

GIB = 2**30
BYTES = {"float32": 4, "bfloat16": 2}
MASTER = 4  # weights, gradients and moments are kept in fp32, whatever the forward pass computes in
MOMENTS = 2  # AdamW's
# Per token of the whole batch: behaviour, advantages, old and new log-probabilities, two kinds of weights (learner/trainer.py).
FLAT_ARRAYS = 6
# A decoder layer in use and the next one on its way.
LAYERS_GATHERED = 2
# As in learner/logprobs.py and learner/publishing.py, which import torch; a test holds them equal.
CHUNK_LOGITS, CHUNK_LOGITS_ON_GPU = 2**24, 2**27
KEPT_VERSIONS = 3
# CUDA's context, NCCL's buffers and cuBLAS's workspaces: an allowance, not measured. On a CPU: torch and Ray, as measured.
GPU_RUNTIME, CPU_RUNTIME = 2 * GIB, GIB * 3 // 5
# vLLM's process on a CPU, and the tokens of one of its scheduler steps on a GPU (its default for an API server on large cards).
CPU_ENGINE_RUNTIME, ENGINE_STEP_TOKENS = GIB * 7 // 10, 8_192
# Copies of a step's fp32 logits that sampling with log-probabilities holds: logits, probabilities, their logarithms.
LOGIT_COPIES = 3
# torch's allocator cannot fill a card to the last block, and a card of "80 GB" reports 79 GiB.
USABLE = 0.92


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What one place, such as a GPU of the learner, must hold: bytes by part."""

    place: str  # such as "learner GPU"
    parts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    @property
    def largest(self) -> str:
        return max(self.parts, key=self.parts.__getitem__)

    def fits(self, gpu_gib: float) -> bool:
        """Whether a card of this size is enough.

        Example:
            >>> plan = MemoryPlan("learner GPU", {"weights": 20 * GIB})
            >>> plan.fits(24), plan.fits(20)
            (True, False)
        """
        return self.total <= USABLE * gpu_gib * GIB

    def table(self) -> list[str]:
        """A line for the total and one for every part that two decimals show."""
        rows = [(self.place, self.total), *(("  " + part, size) for part, size in self.parts.items() if size > GIB // 200)]
        return [f"{name:<42}{size / GIB:>9.2f} GiB" for name, size in rows]


def estimate(shape: ModelShape, config: LearnerConfig, longest: int, episodes: int = 0) -> list[MemoryPlan]:
    """One worker of the learner, and what it keeps in main memory beside it.

    A step trains on at most `episodes` episodes of at most `longest` tokens.
    """
    on_gpu = config.gpus_per_worker > 0
    place = "learner GPU" if on_gpu else "learner process"
    state, work = _state(shape, config), _work(shape, config, longest)
    work["a step's flat arrays"] = FLAT_ARRAYS * 4 * episodes * longest
    runtime = {"runtime": GPU_RUNTIME if on_gpu else CPU_RUNTIME}
    copied = {"checkpoint's copy": _saved(shape, config)}
    if not config.cpu_offload:
        return [MemoryPlan(place, state | work | runtime), MemoryPlan("learner main memory", copied)]
    return [MemoryPlan(place, work | runtime), MemoryPlan("learner main memory", state | copied)]


def _state(shape: ModelShape, config: LearnerConfig) -> dict[str, int]:
    """What a rank keeps all the time: its share of everything, in fp32. Frozen weights below adapters are kept in fp32 as well."""
    trained = shape.parameters
    adapters = 0 if config.lora is None else shape.adapter_parameters(config.lora.rank, config.lora.targets)
    critic = shape.backbone_parameters if resolve(config).needs_critic else 0
    learned = adapters or trained

    def share(parameters: int) -> int:
        return MASTER * -(-parameters // config.workers)

    return {
        "weights": share(trained + adapters),
        "gradients": share(learned),
        "AdamW's moments": share(learned) * MOMENTS,
        "reference policy": share(trained) if config.kl_coefficient > 0 else 0,
        "critic: weights, gradients, moments": share(critic) * (2 + MOMENTS),
    }


def _saved(shape: ModelShape, config: LearnerConfig) -> int:
    """A rank's copy of what a checkpoint holds: trained weights and their moments, kept from the first checkpoint on."""
    critic = shape.backbone_parameters if resolve(config).needs_critic else 0
    lora = config.lora
    trained = (shape.parameters if lora is None else shape.adapter_parameters(lora.rank, lora.targets)) + critic
    return MASTER * (1 + MOMENTS) * -(-trained // config.workers)


class _Moment(NamedTuple):
    weights: int
    activations: int
    gradients: int


def _work(shape: ModelShape, config: LearnerConfig, longest: int) -> dict[str, int]:
    """What comes and goes with a micro-batch, at the moment of the step that needs most."""
    tokens, compute = max(config.microbatch_tokens, longest), BYTES[config.dtype]
    layer = activations_per_token(shape, compute) * tokens
    recomputes = config.activation_checkpointing
    kept = (
        shape.layers * (compute * shape.hidden * tokens if recomputes else layer) + _last_activations(shape, compute) * tokens
    )
    within = kept + layer * recomputes + _backward_per_token(shape, compute) * tokens
    gathered_layer, gathered_root = compute * shape.layer_parameters, compute * shape.root_parameters
    begins, within_gradients, ends = _gradients(shape, config, compute)
    worst = max(
        _Moment(gathered_root + gathered_layer, kept, begins + _logits(shape, config, tokens, compute)),
        _Moment(gathered_root + LAYERS_GATHERED * gathered_layer, within, within_gradients),
        _Moment(0, 0, ends),
        key=sum,
    )
    return {
        "gathered weights": worst.weights,
        "activations": worst.activations,
        "logits and gradients on their way": worst.gradients,
    }


def _gradients(shape: ModelShape, config: LearnerConfig, compute: int) -> tuple[int, int, int]:
    """Gradients that are not yet where they belong, at the three moments. Adapters' own are too small to count."""
    if config.lora is not None:
        return 0, 0, 0
    output, both = shape.embedding_parameters, MASTER + compute
    # The output layer's is summed in fp32 over chunks of logits, with the last chunk's part and the one before beside it.
    begins = (both + compute) * output
    # A layer's is copied to fp32 before it is summed over ranks; the output layer's waits for the end.
    within = compute * output + both * shape.layer_parameters
    # A rank's share of the sum is a copy as well, added to what earlier micro-batches left.
    ends = both * shape.root_parameters + compute * output * shape.tied + MASTER * shape.root_parameters // config.workers
    return begins, within, ends


def _logits(shape: ModelShape, config: LearnerConfig, tokens: int, compute: int) -> int:
    """Two chunks, for one is let go only when the next is there, in fp32 and in what the output layer computes in."""
    chunk = CHUNK_LOGITS_ON_GPU if config.gpus_per_worker > 0 else CHUNK_LOGITS
    return 2 * (MASTER + compute * (compute < MASTER)) * min(chunk, tokens * shape.vocabulary)


def activations_per_token(shape: ModelShape, compute: int) -> int:
    """Bytes that one decoder layer keeps per token for its backward pass; attention keeps no L × L.

    A norm: its input in fp32, the normalised state, its output. Attention: q, k, v, its output, and a normaliser per head.
    The gated layer: gate, its activation, the other half, their product.
    """
    norms = 2 * (MASTER + 2 * compute) * shape.hidden
    head_norms = (MASTER + compute) * (shape.query + shape.key) * shape.head_norms
    attention = 2 * compute * (shape.query + shape.key) + MASTER * shape.heads
    return norms + head_norms + attention + 4 * compute * shape.ffn


def _last_activations(shape: ModelShape, compute: int) -> int:
    """Behind the last layer: the last norm, and the state at the chosen tokens with its gradient."""
    return (MASTER + 4 * compute) * shape.hidden


def _backward_per_token(shape: ModelShape, compute: int) -> int:
    """Gradients within one layer: of the product and of its two factors, and of the state around it."""
    return compute * (3 * shape.ffn + 2 * shape.hidden)


def estimate_engine(
    shape: ModelShape, *, dtype: str, on_gpu: bool, tensor_parallel: int, kv_cache_mib: int, max_num_seqs: int
) -> MemoryPlan:
    """One GPU, or one process, of an engine."""
    size = BYTES[dtype]
    step_tokens = ENGINE_STEP_TOKENS if on_gpu else max_num_seqs
    working = size * step_tokens * (3 * shape.ffn // tensor_parallel + 4 * shape.hidden)
    parts = {
        "weights": size * shape.parameters // tensor_parallel,
        "KV cache": kv_cache_mib * 2**20,
        "a step's activations and logits": working + LOGIT_COPIES * MASTER * shape.vocabulary * max_num_seqs,
        "runtime": GPU_RUNTIME if on_gpu else CPU_ENGINE_RUNTIME,
    }
    return MemoryPlan("engine GPU" if on_gpu else "engine process", parts)


def estimate_published(shape: ModelShape, dtype: str) -> MemoryPlan:
    """Shared memory of the node whose workers publish: the newest versions, whole."""
    return MemoryPlan("shared memory", {f"{KEPT_VERSIONS} published versions": KEPT_VERSIONS * BYTES[dtype] * shape.parameters})


def whole_episodes(shape: ModelShape, *, dtype: str, tensor_parallel: int, kv_cache_mib: int, length: int) -> int:
    """How many episodes of full length an engine's cache holds at once."""
    per_token_on_gpu = 2 * BYTES[dtype] * shape.layers * shape.head_size * max(1, shape.kv_heads // tensor_parallel)
    return kv_cache_mib * 2**20 // (per_token_on_gpu * length)
